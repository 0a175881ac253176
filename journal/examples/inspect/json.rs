//! Both reports as one line of JSON, for programs. Ranges are `[first, end]`, the end not included.

use std::fmt::{self, Write as _};

use voussoir_journal::{Health, Report, SalvageReport, SalvagedLog};

pub(crate) fn inspected(report: &Report, out: &mut String) -> fmt::Result {
    write!(out, "{{\"journal\":\"{:032x}\",\"epoch\":{}", report.journal, report.epoch)?;
    write!(out, ",\"last_lsn\":{},\"durable_lsn\":{}", report.last_lsn, report.durable_lsn)?;
    write!(out, ",\"names_missing\":{},\"segments\":[", report.names_missing)?;
    for (at, segment) in report.segments.iter().enumerate() {
        let (name, role) = (json_text(&segment.name), json_text(&format!("{:?}", segment.role)));
        let (sequence, frames, bytes) = (segment.sequence, segment.frames, segment.bytes);
        write!(out, "{}{{\"name\":{name},\"sequence\":{sequence},\"role\":{role}", comma(at))?;
        write!(out, ",\"frames\":{frames},\"bytes\":{bytes}}}")?;
    }
    write!(out, "],\"logs\":[")?;
    for (at, log) in report.logs.iter().enumerate() {
        let (first, end, bytes) = (log.first, log.end, log.bytes);
        write!(out, "{}{{{}", comma(at), json_name(&log.name.namespace, log.name.id))?;
        write!(out, ",\"first\":{first},\"end\":{end},\"bytes\":{bytes}")?;
        write!(out, ",{}}}", json_health(log.health))?;
    }
    write!(out, "],\"problems\":[")?;
    for (at, problem) in report.problems.iter().enumerate() {
        write!(out, "{}{}", comma(at), json_text(&format!("{problem:?}")))?;
    }
    writeln!(out, "]}}")
}

pub(crate) fn salvaged(report: &SalvageReport, out: &mut String) -> fmt::Result {
    let (first, last) = report.lsns;
    write!(out, "{{\"journal\":\"{:032x}\",\"frames\":{}", report.journal, report.frames)?;
    write!(out, ",\"first_lsn\":{first},\"last_lsn\":{last}")?;
    write!(out, ",\"has_manifest\":{}", report.has_manifest)?;
    write!(out, ",\"end_is_proven\":{}", report.end_is_proven)?;
    write!(out, ",\"names_missing\":{}", report.names_missing)?;
    write!(out, ",\"missing_lsns\":{}", json_ranges(&report.missing_lsns))?;
    let missing: Vec<String> = report.missing_segments.iter().map(|name| json_text(name)).collect();
    write!(out, ",\"missing_segments\":[{}],\"files\":[", missing.join(","))?;
    for (at, file) in report.files.iter().enumerate() {
        let (name, role) = (json_text(&file.name), json_text(&format!("{:?}", file.role)));
        let null = || "null".to_owned();
        let journal = file.journal.map_or_else(null, |journal| format!("\"{journal:032x}\""));
        let sequence = file.sequence.map_or_else(null, |sequence| sequence.to_string());
        write!(out, "{}{{\"name\":{name},\"journal\":{journal}", comma(at))?;
        write!(out, ",\"sequence\":{sequence},\"frames\":{},\"role\":{role}}}", file.frames)?;
    }
    write!(out, "],\"logs\":[")?;
    for (at, log) in report.logs.iter().enumerate() {
        let SalvagedLog { name, first, end, records, bytes, missing, health, .. } = log;
        write!(out, "{}{{{}", comma(at), json_name(&name.namespace, name.id))?;
        write!(out, ",\"first\":{first},\"end\":{end},\"records\":{records},\"bytes\":{bytes}")?;
        write!(out, ",\"missing\":{},{}}}", json_ranges(missing), json_health(*health))?;
    }
    writeln!(out, "]}}")
}

fn comma(at: usize) -> &'static str {
    if at > 0 { "," } else { "" }
}

fn json_ranges(ranges: &[std::ops::Range<u64>]) -> String {
    let all: Vec<String> =
        ranges.iter().map(|range| format!("[{},{}]", range.start, range.end)).collect();
    format!("[{}]", all.join(","))
}

fn json_name(namespace: &str, id: u64) -> String {
    format!("\"namespace\":{},\"id\":{id}", json_text(namespace))
}

fn json_health(health: Health) -> String {
    match health {
        Health::Intact => "\"health\":\"intact\"".to_owned(),
        Health::Lost { from, until } => format!("\"health\":\"lost\",\"lost\":[{from},{until}]"),
        _ => "\"health\":\"suspect\"".to_owned(),
    }
}

fn json_text(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if u32::from(c) < 0x20 => {
                let _infallible = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
