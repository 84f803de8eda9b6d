//! Flows from their first packet to their last.

use lb_tests::{Case, Flow, Kind};

use crate::run;

/// The kinds that have connections.
fn tcp_kinds() -> impl Iterator<Item = Kind> {
    Kind::all(|kind| kind.tcp)
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        let flow = Flow::first(kind);
        cases.push(
            Case::new(format!("{kind}: a flow begins, is answered and goes on"))
                .begin("opening", &flow, &flow.opening())
                .forward("opening, sent again", &flow, &flow.opening())
                .reply("acceptance", &flow, &flow.acceptance())
                .reply("acceptance, sent again", &flow, &flow.acceptance())
                .forward("request", &flow, &flow.request())
                .reply("reply", &flow, &flow.reply())
                .forward("another request", &flow, &flow.request())
                .reply("another reply", &flow, &flow.reply()),
        );
    }
    for kind in tcp_kinds() {
        let flow = Flow::first(kind);
        let fin = flow.segment(|tcp| tcp.fin = true);
        let fin_back = flow.answer(|tcp| tcp.fin = true);
        cases.push(
            Case::new(format!("{kind}: FIN of the client, then of the backend"))
                .established(&flow)
                .forward("client's FIN", &flow, &fin)
                .forward("client's FIN, sent again", &flow, &fin)
                .reply("data of the half-closed connection", &flow, &flow.reply())
                .reply("backend's FIN", &flow, &fin_back)
                .ending(&flow)
                .reply("backend's FIN, sent again", &flow, &fin_back)
                .forward("last ACK", &flow, &flow.segment(|_| {})),
        );
    }
    cases
}

#[test]
fn lifecycle() {
    run("lifecycle", &cases());
}
