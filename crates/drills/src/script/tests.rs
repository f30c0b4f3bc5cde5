use super::*;

const HEAD: &str = "title: t\n";

fn fault(step: &str) -> Fault {
    let invalid = format!("{HEAD}{step}\n").parse::<Script>().unwrap_err();
    assert_eq!(invalid.line, 2, "{step}");
    invalid.fault
}

#[test]
fn a_script_is_read() {
    let text = "\n# why\ntitle: A title\nabout: one\nabout: two\nhold: 3s\nclients-lost: primary\npressure: 50\n\n\
                +0s power-off leader + follower # both\n+hold heal\n+500ms cut primary to rest\n";
    let script: Script = text.parse().unwrap();
    assert_eq!((script.title.as_str(), script.about.as_str()), ("A title", "one two"));
    assert_eq!((script.clients_lost, script.pressure), (ClientsLost::Primary, Some(50)));
    let steps: Vec<_> =
        script.steps.iter().map(|step| (script.delay(step.after), step.action.clone())).collect();
    let cut =
        Action::Cut { parts: vec![Selector::Primary], others: vec![Selector::Rest], one_way: true };
    assert_eq!(
        steps,
        [
            (Duration::ZERO, Action::PowerOff(vec![Selector::Leader, Selector::Follower])),
            (Duration::from_secs(3), Action::Heal),
            (Duration::from_millis(500), cut),
        ]
    );
}

#[test]
fn displayed_script_parses_again() {
    for step in [
        "nothing",
        "power-off leader + follower",
        "kill primary",
        "rotate-authority",
        "stop replica-gateway",
        "start relay",
        "pause primary + primary-gateway",
        "resume nodes",
        "roll nodes",
        "cut primary from rest",
        "cut directory-leader to replica",
        "throttle primary from rest at 1000",
        "heal",
        "switch to replica",
        "switch to home",
        "await ready",
        "await caught-up",
        "measure",
    ] {
        let script: Script = format!("{HEAD}+0s {step}").parse().unwrap();
        assert_eq!(script.steps[0].action.to_string(), step);
    }
}

#[test]
fn script_sets_the_pause_of_its_clients() {
    let text = format!("{HEAD}think: 100ms\npressure: 5000\nmessages: 60\n+0s heal");
    let script: Script = text.parse().unwrap();
    assert_eq!(script.messages, Some(60));
    assert_eq!((script.think, script.pressure), (Some(Duration::from_millis(100)), Some(5000)));
    assert_eq!(fault("think: long\n+0s heal"), Fault::Duration("long".to_owned()));
}

#[test]
fn errors_name_the_line_and_the_mistake() {
    assert_eq!(fault("+1 heal"), Fault::Duration("1".to_owned()));
    assert_eq!(fault("+s heal"), Fault::Duration("s".to_owned()));
    assert_eq!(fault("+0s explode leader"), Fault::Verb("explode".to_owned()));
    assert_eq!(fault("+0s"), Fault::Verb(String::new()));
    assert_eq!(fault("+0s kill everything"), Fault::Selector("everything".to_owned()));
    assert_eq!(fault("+0s kill"), Fault::Selector(String::new()));
    assert!(matches!(fault("+0s cut primary"), Fault::Usage { verb: "cut", .. }));
    assert!(matches!(fault("+0s heal leader"), Fault::Usage { verb: "heal", .. }));
    assert!(matches!(fault("+0s switch to mars"), Fault::Usage { verb: "switch", .. }));
    assert!(matches!(
        fault("+0s throttle primary from rest at x"),
        Fault::Usage { verb: "throttle", .. }
    ));
    assert_eq!(fault("colour: red"), Fault::Header("colour".to_owned()));
    assert!(matches!(fault("messages: many"), Fault::Value { header: "messages", .. }));
    assert!(matches!(fault("clients-lost: all"), Fault::Value { header: "clients-lost", .. }));
    let late = format!("{HEAD}+0s heal\nhold: 1s").parse::<Script>().unwrap_err();
    assert_eq!(late, InvalidScript { line: 3, fault: Fault::LateHeader });
    assert_eq!("title: t".parse::<Script>().unwrap_err().fault, Fault::Empty);
    let shown = fault("+0s kill everything").to_string();
    assert!(shown.contains("directory-leader"), "{shown}");
}
