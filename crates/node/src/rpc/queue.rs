//! Listeners of other nodes' gateways, and their reports.

use futures::StreamExt;
use futures::stream::BoxStream;
use meridian_gateway::Reports;
use meridian_proto::queue::{self as wire, list_response, queue_server, report_response};
use tonic::{Request, Response, Status};

use crate::queues::NotListening;
use crate::routing::{list_calls, queue_calls};
use crate::rpc::shard::{ShardService, invalid, not_leader};

/// A report of a thousand messages, or what a listener of as many credits holds.
const MAX_REQUEST_BYTES: usize = 128 << 10;

/// Serves what gateways on other nodes ask of the queues that are led here.
#[derive(Clone)]
pub(crate) struct QueueService(pub(crate) ShardService);

impl QueueService {
    pub(crate) fn into_server(self) -> queue_server::QueueServer<Self> {
        queue_server::QueueServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }
}

#[tonic::async_trait]
impl queue_server::Queue for QueueService {
    type ListenStream = BoxStream<'static, Result<wire::ListenPart, Status>>;

    async fn listen(
        &self,
        request: Request<wire::ListenRequest>,
    ) -> Result<Response<Self::ListenStream>, Status> {
        let request = request.into_inner();
        let voter = self.0.voter(request.group)?;
        let listener = queue_calls::listener(request).map_err(invalid)?;
        let session = match voter {
            Some(voter) => voter.queues().listen(listener).await,
            None => Err(NotListening::NotLeader(None)),
        };
        let parts = match session {
            Ok(session) => {
                let begun = futures::stream::iter([Ok(crate::queues::Part::Alive)]);
                begun.chain(session.into_parts()).boxed()
            }
            Err(refused) => futures::stream::iter([Err(refused)]).boxed(),
        };
        Ok(Response::new(parts.map(|part| Ok(queue_calls::part_to_wire(part))).boxed()))
    }

    async fn report(
        &self,
        request: Request<wire::ReportRequest>,
    ) -> Result<Response<wire::ReportResponse>, Status> {
        let request = request.into_inner();
        let voter = self.0.voter(request.group)?;
        let Reports { queue, listener, reports } =
            queue_calls::reports(request).map_err(invalid)?;
        let answers = match voter {
            Some(voter) => voter.queues().report(queue, listener, reports).await,
            None => Err(NotListening::NotLeader(None)),
        };
        let result = match answers {
            Ok(answers) => report_response::Result::Answers(queue_calls::answers_to_wire(&answers)),
            Err(NotListening::NotLeader(leader)) => {
                report_response::Result::NotLeader(not_leader(leader))
            }
            Err(NotListening::Refused(reason) | NotListening::Unavailable(reason)) => {
                report_response::Result::Unavailable(reason.to_owned())
            }
        };
        Ok(Response::new(wire::ReportResponse { result: Some(result) }))
    }

    async fn list(
        &self,
        request: Request<wire::ListRequest>,
    ) -> Result<Response<wire::ListResponse>, Status> {
        let request = request.into_inner();
        let voter = self.0.voter(request.group)?;
        let list = list_calls::list(request).map_err(invalid)?;
        let page = match voter {
            Some(voter) => voter.queues().list(list).await,
            None => Err(NotListening::NotLeader(None)),
        };
        let result = match page {
            Ok(page) => list_response::Result::Page(list_calls::page_to_wire(page.into_inner())),
            Err(NotListening::NotLeader(leader)) => {
                list_response::Result::NotLeader(not_leader(leader))
            }
            Err(NotListening::Refused(reason) | NotListening::Unavailable(reason)) => {
                list_response::Result::Unavailable(reason.to_owned())
            }
        };
        Ok(Response::new(wire::ListResponse { result: Some(result) }))
    }
}
