//! The `dns` probe: a query over UDP (RFC 1035) is answered as it should be.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata::RData,
};

use super::{
    ProbeError,
    probe::{random, shown},
    udp,
};
use crate::state::{DnsProbe, Rcode, RecordType};

/// Most bytes of an answer without extensions (RFC 1035, section 2.3.4); servers that send
/// more are heard, too.
const MAX_ANSWER: usize = 4_096;

/// Asks, and looks at the answer to what was asked.
pub(super) async fn probe(target: SocketAddr, dns: &DnsProbe) -> Result<(), ProbeError> {
    let socket = udp::connect(target).await?;
    let id = random() as u16;
    socket.send(&question(id, dns)?).await?;
    let mut buffer = vec![0; MAX_ANSWER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = Packet::parse(&buffer[..length])
            .map_err(|_| ProbeError::Dns("the answer is not DNS".to_owned()))?;
        if answer.id() == id && answer.has_flags(PacketFlag::RESPONSE) {
            return judge(&answer, dns);
        }
    }
}

fn question(id: u16, dns: &DnsProbe) -> Result<Vec<u8>, ProbeError> {
    let wrong = |error: simple_dns::SimpleDnsError| ProbeError::Impossible(error.to_string());
    let name = match dns.query.strip_suffix('.').unwrap_or(&dns.query) {
        "" => Name::new_unchecked(""),
        name => Name::new(name).map_err(wrong)?,
    };
    let mut query = Packet::new_query(id);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    let (kind, class) = (
        QTYPE::TYPE(record_type(dns.record)),
        QCLASS::CLASS(CLASS::IN),
    );
    query
        .questions
        .push(Question::new(name, kind, class, false));
    query.build_bytes_vec().map_err(wrong)
}

fn judge(answer: &Packet<'_>, dns: &DnsProbe) -> Result<(), ProbeError> {
    let rcode = answer.rcode();
    if rcode != response_code(dns.rcode) {
        let name = match rcode {
            RCODE::NoError => "NOERROR".to_owned(),
            RCODE::FormatError => "FORMERR".to_owned(),
            RCODE::ServerFailure => "SERVFAIL".to_owned(),
            RCODE::NameError => "NXDOMAIN".to_owned(),
            RCODE::NotImplemented => "NOTIMP".to_owned(),
            RCODE::Refused => "REFUSED".to_owned(),
            other => format!("{other:?}"),
        };
        return Err(ProbeError::Dns(name));
    }
    let Some(expected) = &dns.answer else {
        return Ok(());
    };
    let wanted = record_type(dns.record);
    let of_type = answer
        .answers
        .iter()
        .filter(|record| record.rdata.type_code() == wanted);
    let said: Vec<_> = of_type.map(|record| in_words(&record.rdata)).collect();
    if said.iter().any(|said| is_same(said, expected)) {
        return Ok(());
    }
    Err(ProbeError::Dns(match said.as_slice() {
        [] => format!("no record {}", dns.record),
        [first, ..] => format!("{} says {}", dns.record, shown(first.as_bytes())),
    }))
}

/// Whether two texts of records say the same: names have no case and may end with a dot,
/// addresses have several forms.
fn is_same(said: &str, expected: &str) -> bool {
    let plain = |text: &str| {
        let words = text.split_ascii_whitespace();
        let words = words.map(|word| word.trim_end_matches('.').to_ascii_lowercase());
        words.collect::<Vec<_>>()
    };
    match (said.parse::<Ipv6Addr>(), expected.parse::<Ipv6Addr>()) {
        (Ok(said), Ok(expected)) => said == expected,
        _ => plain(said) == plain(expected),
    }
}

/// The data of a record as in a zone file.
fn in_words(data: &RData<'_>) -> String {
    match data {
        RData::A(a) => Ipv4Addr::from(a.address).to_string(),
        RData::AAAA(aaaa) => Ipv6Addr::from(aaaa.address).to_string(),
        RData::CNAME(name) => name.0.to_string(),
        RData::NS(name) => name.0.to_string(),
        RData::PTR(name) => name.0.to_string(),
        RData::MX(mx) => format!("{} {}", mx.preference, mx.exchange),
        RData::SRV(srv) => {
            format!(
                "{} {} {} {}",
                srv.priority, srv.weight, srv.port, srv.target
            )
        }
        RData::SOA(soa) => format!(
            "{} {} {} {} {} {} {}",
            soa.mname, soa.rname, soa.serial, soa.refresh, soa.retry, soa.expire, soa.minimum
        ),
        RData::TXT(text) => String::try_from(text.clone()).unwrap_or_default(),
        _ => String::new(),
    }
}

const fn record_type(record: RecordType) -> TYPE {
    match record {
        RecordType::A => TYPE::A,
        RecordType::Aaaa => TYPE::AAAA,
        RecordType::Cname => TYPE::CNAME,
        RecordType::Mx => TYPE::MX,
        RecordType::Ns => TYPE::NS,
        RecordType::Ptr => TYPE::PTR,
        RecordType::Soa => TYPE::SOA,
        RecordType::Srv => TYPE::SRV,
        RecordType::Txt => TYPE::TXT,
    }
}

const fn response_code(rcode: Rcode) -> RCODE {
    match rcode {
        Rcode::NoError => RCODE::NoError,
        Rcode::FormErr => RCODE::FormatError,
        Rcode::ServFail => RCODE::ServerFailure,
        Rcode::NxDomain => RCODE::NameError,
        Rcode::NotImp => RCODE::NotImplemented,
        Rcode::Refused => RCODE::Refused,
    }
}

#[cfg(test)]
mod tests;
