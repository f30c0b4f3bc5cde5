// The file system that encrypts what RocksDB writes, over the one of the operating system.
//
// Each file that is encrypted begins with a header of HEADER_BYTES; what RocksDB knows as offset 0
// lies behind. Whether a file is encrypted is read from its beginning, so that plain and encrypted
// files lie side by side. Headers, keys and ciphers are Rust's: `callbacks` has its functions.
//
// A counter must never be used for two contents. So a file is written from its beginning to its
// end, once: nothing is appended to a file that was there, nothing is written at an offset, and a
// recycled file is a new one. RocksDB is told that the rest is not supported; with Meridian's
// options it asks for none of it, or does without.

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace ROCKSDB_NAMESPACE;

// As in RocksDB's db/c.cc; build.rs compares them.
struct rocksdb_env_t {
  Env* rep;
  bool is_default;
};

namespace {

constexpr size_t HEADER_BYTES = 4096;
// Encrypted in one go, so that the copy stays in the processor's cache.
constexpr size_t PIECE_BYTES = 256 << 10;

enum Form : int { FAILED = -1, PLAIN = 0, ENCRYPTED = 1, EMPTY = 2 };

// As in lib.rs.
struct Callbacks {
  void* context;
  // Begins a file: PLAIN, ENCRYPTED with its header and cipher, or FAILED.
  int (*begin)(void* context, const char* name, size_t name_bytes, uint8_t* header, void** cipher);
  // What a file is that begins so: as `begin`, or EMPTY.
  int (*open)(void* context, const char* name, size_t name_bytes, const uint8_t* head,
              size_t head_bytes, uint64_t file_bytes, void** cipher);
  void (*apply)(const void* cipher, uint64_t offset, uint8_t* data, size_t bytes);
  void (*free_cipher)(void* cipher);
  void (*free_context)(void* context);
};

// The cipher of one file. None: of a file that is encrypted and has no content yet.
class Cipher {
 public:
  Cipher(const Callbacks& callbacks, void* cipher) : callbacks_(callbacks), cipher_(cipher) {}
  ~Cipher() {
    if (cipher_ != nullptr) callbacks_.free_cipher(cipher_);
  }
  Cipher(const Cipher&) = delete;
  Cipher& operator=(const Cipher&) = delete;

  void Apply(uint64_t offset, char* data, size_t bytes) const {
    if (bytes > 0 && cipher_ != nullptr) {
      callbacks_.apply(cipher_, offset, reinterpret_cast<uint8_t*>(data), bytes);
    }
  }

  // Decrypts what was read into `scratch`, or elsewhere.
  void Decrypt(uint64_t offset, Slice* read, char* scratch) const {
    if (read->empty()) return;
    if (read->data() != scratch) {
      memcpy(scratch, read->data(), read->size());
      *read = Slice(scratch, read->size());
    }
    Apply(offset, scratch, read->size());
  }

 private:
  const Callbacks callbacks_;
  void* const cipher_;
};

IOStatus Unsupported(const char* what) {
  return IOStatus::NotSupported("not of an encrypted file", what);
}

uint64_t ContentBytes(uint64_t file_bytes) {
  return file_bytes > HEADER_BYTES ? file_bytes - HEADER_BYTES : 0;
}

class ReadForward : public FSSequentialFileWrapper {
 public:
  ReadForward(std::unique_ptr<FSSequentialFile>&& file, std::unique_ptr<Cipher>&& cipher)
      : FSSequentialFileWrapper(file.get()), file_(std::move(file)), cipher_(std::move(cipher)) {}

  IOStatus Read(size_t n, const IOOptions& options, Slice* result, char* scratch,
                IODebugContext* dbg) override {
    IOStatus status = target()->Read(n, options, result, scratch, dbg);
    if (status.ok()) {
      cipher_->Decrypt(offset_, result, scratch);
      offset_ += result->size();
    }
    return status;
  }

  IOStatus Skip(uint64_t n) override {
    IOStatus status = target()->Skip(n);
    if (status.ok()) offset_ += n;
    return status;
  }

  IOStatus InvalidateCache(size_t offset, size_t length) override {
    return target()->InvalidateCache(offset + HEADER_BYTES, length);
  }

  IOStatus PositionedRead(uint64_t offset, size_t n, const IOOptions& options, Slice* result,
                          char* scratch, IODebugContext* dbg) override {
    IOStatus status =
        target()->PositionedRead(offset + HEADER_BYTES, n, options, result, scratch, dbg);
    if (status.ok()) {
      cipher_->Decrypt(offset, result, scratch);
      offset_ = offset + result->size();
    }
    return status;
  }

 private:
  const std::unique_ptr<FSSequentialFile> file_;
  const std::unique_ptr<Cipher> cipher_;
  // Of the content.
  uint64_t offset_ = 0;
};

class ReadAnywhere : public FSRandomAccessFileWrapper {
 public:
  ReadAnywhere(std::unique_ptr<FSRandomAccessFile>&& file, std::unique_ptr<Cipher>&& cipher)
      : FSRandomAccessFileWrapper(file.get()), file_(std::move(file)), cipher_(std::move(cipher)) {}

  IOStatus Read(uint64_t offset, size_t n, const IOOptions& options, Slice* result, char* scratch,
                IODebugContext* dbg) const override {
    IOStatus status = target()->Read(offset + HEADER_BYTES, n, options, result, scratch, dbg);
    if (status.ok()) cipher_->Decrypt(offset, result, scratch);
    return status;
  }

  // One read after the other, by the function above, as a file system without more does it.
  IOStatus MultiRead(FSReadRequest* requests, size_t count, const IOOptions& options,
                     IODebugContext* dbg) override {
    return FSRandomAccessFile::MultiRead(requests, count, options, dbg);
  }

  IOStatus ReadAsync(FSReadRequest& request, const IOOptions& options,
                     std::function<void(FSReadRequest&, void*)> done, void* argument,
                     void** handle, IOHandleDeleter* deleter, IODebugContext* dbg) override {
    return FSRandomAccessFile::ReadAsync(request, options, std::move(done), argument, handle,
                                         deleter, dbg);
  }

  bool SubmitReadAsync(FSReadRequest& request, const IOOptions& options,
                       std::function<void(FSReadRequest&)> done, IODebugContext* dbg) override {
    return FSRandomAccessFile::SubmitReadAsync(request, options, std::move(done), dbg);
  }

  IOStatus Prefetch(uint64_t offset, size_t n, const IOOptions& options,
                    IODebugContext* dbg) override {
    return target()->Prefetch(offset + HEADER_BYTES, n, options, dbg);
  }

  IOStatus InvalidateCache(size_t offset, size_t length) override {
    return target()->InvalidateCache(offset + HEADER_BYTES, length);
  }

  IOStatus GetFileSize(uint64_t* result) override {
    IOStatus status = target()->GetFileSize(result);
    if (status.ok()) *result = ContentBytes(*result);
    return status;
  }

 private:
  const std::unique_ptr<FSRandomAccessFile> file_;
  const std::unique_ptr<Cipher> cipher_;
};

class WriteOnce : public FSWritableFileOwnerWrapper {
 public:
  // `file` has its header, and nothing else.
  WriteOnce(std::unique_ptr<FSWritableFile>&& file, std::unique_ptr<Cipher>&& cipher)
      : FSWritableFileOwnerWrapper(std::move(file)), cipher_(std::move(cipher)) {}

  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* dbg) override {
    // How much of a failed append is in the file is not known, nor the counter of what follows.
    if (!failed_.ok()) return failed_;
    scratch_.resize(std::max(scratch_.size(), std::min(data.size(), PIECE_BYTES)));
    for (size_t done = 0; done < data.size();) {
      const size_t bytes = std::min(data.size() - done, PIECE_BYTES);
      memcpy(scratch_.data(), data.data() + done, bytes);
      cipher_->Apply(offset_, scratch_.data(), bytes);
      failed_ = target()->Append(Slice(scratch_.data(), bytes), options, dbg);
      if (!failed_.ok()) return failed_;
      offset_ += bytes;
      done += bytes;
    }
    return IOStatus::OK();
  }

  IOStatus Append(const Slice& data, const IOOptions& options, const DataVerificationInfo&,
                  IODebugContext* dbg) override {
    return Append(data, options, dbg);
  }

  IOStatus PositionedAppend(const Slice&, uint64_t, const IOOptions&, IODebugContext*) override {
    return Unsupported("PositionedAppend");
  }

  IOStatus PositionedAppend(const Slice&, uint64_t, const IOOptions&, const DataVerificationInfo&,
                            IODebugContext*) override {
    return Unsupported("PositionedAppend");
  }

  IOStatus Truncate(uint64_t size, const IOOptions& options, IODebugContext* dbg) override {
    if (size < offset_) failed_ = Unsupported("Append after Truncate");
    return target()->Truncate(size + HEADER_BYTES, options, dbg);
  }

  uint64_t GetFileSize(const IOOptions& options, IODebugContext* dbg) override {
    return ContentBytes(target()->GetFileSize(options, dbg));
  }

  IOStatus InvalidateCache(size_t offset, size_t length) override {
    return target()->InvalidateCache(offset + HEADER_BYTES, length);
  }

  IOStatus RangeSync(uint64_t offset, uint64_t bytes, const IOOptions& options,
                     IODebugContext* dbg) override {
    return target()->RangeSync(offset + HEADER_BYTES, bytes, options, dbg);
  }

  void PrepareWrite(size_t offset, size_t length, const IOOptions& options,
                    IODebugContext* dbg) override {
    target()->PrepareWrite(offset + HEADER_BYTES, length, options, dbg);
  }

  IOStatus Allocate(uint64_t offset, uint64_t length, const IOOptions& options,
                    IODebugContext* dbg) override {
    return target()->Allocate(offset + HEADER_BYTES, length, options, dbg);
  }

 private:
  const std::unique_ptr<Cipher> cipher_;
  // The end of the content.
  uint64_t offset_ = 0;
  IOStatus failed_;
  std::vector<char> scratch_;
};

class EncryptedFileSystem : public FileSystemWrapper {
 public:
  explicit EncryptedFileSystem(const Callbacks& callbacks)
      : FileSystemWrapper(FileSystem::Default()), callbacks_(callbacks) {}
  ~EncryptedFileSystem() override { callbacks_.free_context(callbacks_.context); }

  static const char* kClassName() { return "MeridianEncryptedFileSystem"; }
  const char* Name() const override { return kClassName(); }

  IOStatus NewSequentialFile(const std::string& name, const FileOptions& options,
                             std::unique_ptr<FSSequentialFile>* result,
                             IODebugContext* dbg) override {
    std::unique_ptr<FSSequentialFile> file;
    std::unique_ptr<Cipher> cipher;
    IOStatus status = Look(name, options.io_options, &cipher, dbg);
    if (status.ok() && cipher != nullptr && options.use_mmap_reads) status = Unsupported("mmap");
    if (status.ok()) status = target()->NewSequentialFile(name, options, &file, dbg);
    if (status.ok() && cipher != nullptr) {
      status = file->Skip(HEADER_BYTES);
      file.reset(new ReadForward(std::move(file), std::move(cipher)));
    }
    if (status.ok()) *result = std::move(file);
    return status;
  }

  IOStatus NewRandomAccessFile(const std::string& name, const FileOptions& options,
                               std::unique_ptr<FSRandomAccessFile>* result,
                               IODebugContext* dbg) override {
    std::unique_ptr<FSRandomAccessFile> file;
    std::unique_ptr<Cipher> cipher;
    IOStatus status = Look(name, options.io_options, &cipher, dbg);
    if (status.ok() && cipher != nullptr && options.use_mmap_reads) status = Unsupported("mmap");
    if (status.ok()) status = target()->NewRandomAccessFile(name, options, &file, dbg);
    if (status.ok() && cipher != nullptr) {
      file.reset(new ReadAnywhere(std::move(file), std::move(cipher)));
    }
    if (status.ok()) *result = std::move(file);
    return status;
  }

  IOStatus NewWritableFile(const std::string& name, const FileOptions& options,
                           std::unique_ptr<FSWritableFile>* result, IODebugContext* dbg) override {
    alignas(HEADER_BYTES) char header[HEADER_BYTES];
    void* begun = nullptr;
    const int form = callbacks_.begin(callbacks_.context, name.data(), name.size(),
                                      reinterpret_cast<uint8_t*>(header), &begun);
    if (form == PLAIN) return target()->NewWritableFile(name, options, result, dbg);
    if (form != ENCRYPTED) return IOStatus::IOError(name, "no key can be made");
    auto cipher = std::make_unique<Cipher>(callbacks_, begun);
    // The last page of a file would be written again and again, each time with more in it.
    if (options.use_direct_writes || options.use_mmap_writes) return Unsupported("direct writes");
    std::unique_ptr<FSWritableFile> file;
    IOStatus status = target()->NewWritableFile(name, options, &file, dbg);
    if (status.ok()) status = file->Append(Slice(header, HEADER_BYTES), options.io_options, dbg);
    if (status.ok()) result->reset(new WriteOnce(std::move(file), std::move(cipher)));
    return status;
  }

  IOStatus ReopenWritableFile(const std::string&, const FileOptions&,
                              std::unique_ptr<FSWritableFile>*, IODebugContext*) override {
    return Unsupported("ReopenWritableFile");
  }

  IOStatus ReuseWritableFile(const std::string& name, const std::string& old_name,
                             const FileOptions& options, std::unique_ptr<FSWritableFile>* result,
                             IODebugContext* dbg) override {
    IOStatus status = target()->DeleteFile(old_name, options.io_options, dbg);
    return status.ok() ? NewWritableFile(name, options, result, dbg) : status;
  }

  IOStatus NewRandomRWFile(const std::string&, const FileOptions&, std::unique_ptr<FSRandomRWFile>*,
                           IODebugContext*) override {
    return Unsupported("NewRandomRWFile");
  }

  IOStatus NewMemoryMappedFileBuffer(const std::string&,
                                     std::unique_ptr<MemoryMappedFileBuffer>*) override {
    return Unsupported("NewMemoryMappedFileBuffer");
  }

  IOStatus Truncate(const std::string& name, size_t size, const IOOptions& options,
                    IODebugContext* dbg) override {
    std::unique_ptr<Cipher> cipher;
    IOStatus status = Look(name, options, &cipher, dbg);
    if (!status.ok()) return status;
    return target()->Truncate(name, cipher != nullptr ? size + HEADER_BYTES : size, options, dbg);
  }

  IOStatus GetFileSize(const std::string& name, const IOOptions& options, uint64_t* size,
                       IODebugContext* dbg) override {
    IOStatus status = target()->GetFileSize(name, options, size, dbg);
    std::unique_ptr<Cipher> cipher;
    if (status.ok()) status = Look(name, options, &cipher, dbg);
    if (status.ok() && cipher != nullptr) *size = ContentBytes(*size);
    return status;
  }

  IOStatus GetChildrenFileAttributes(const std::string& folder, const IOOptions& options,
                                     std::vector<FileAttributes>* result,
                                     IODebugContext* dbg) override {
    // By the names, and `GetFileSize` of each.
    return FileSystem::GetChildrenFileAttributes(folder, options, result, dbg);
  }

  // The log for people holds keys, too.
  IOStatus NewLogger(const std::string& name, const IOOptions& options,
                     std::shared_ptr<Logger>* result, IODebugContext* dbg) override {
    return FileSystem::NewLogger(name, options, result, dbg);
  }

  void SupportedOps(int64_t& supported) override {
    target()->SupportedOps(supported);
    supported &= int64_t{1} << FSSupportedOps::kFSPrefetch;
  }

 private:
  // The cipher of a file that is there; none if it is plain.
  IOStatus Look(const std::string& name, const IOOptions& io, std::unique_ptr<Cipher>* cipher,
                IODebugContext* dbg) {
    FileOptions options;
    options.io_options = io;
    std::unique_ptr<FSRandomAccessFile> file;
    uint64_t bytes = 0;
    IOStatus status = target()->NewRandomAccessFile(name, options, &file, dbg);
    if (status.ok()) status = target()->GetFileSize(name, io, &bytes, dbg);
    char scratch[128];
    Slice head;
    if (status.ok()) status = file->Read(0, sizeof(scratch), io, &head, scratch, dbg);
    if (!status.ok()) return status;
    void* opened = nullptr;
    const int form = callbacks_.open(callbacks_.context, name.data(), name.size(),
                                     reinterpret_cast<const uint8_t*>(head.data()), head.size(),
                                     bytes, &opened);
    if (form == FAILED) return IOStatus::Corruption(name, "its key cannot be had");
    if (form != PLAIN) cipher->reset(new Cipher(callbacks_, opened));
    return IOStatus::OK();
  }

  const Callbacks callbacks_;
};

}  // namespace

// Takes the context over.
extern "C" rocksdb_env_t* meridian_encrypted_env(const Callbacks* callbacks) {
  auto files = std::make_shared<EncryptedFileSystem>(*callbacks);
  auto* env = new rocksdb_env_t;
  env->rep = NewCompositeEnv(files).release();
  env->is_default = false;
  return env;
}
