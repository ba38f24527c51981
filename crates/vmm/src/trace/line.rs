// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is written of an event: a line of JSON, and the arguments that a trace viewer shows.
//!
//! Numbers of PASIDs and groups are decimal, addresses are strings in hexadecimal. A PASID is `null` for requests
//! without PASID.

use serde::Serialize;
use vsva::{Attachment, Event, InvalidationKind};
use vtd_spec::{AddressRange, Pasid, ResponseCode};

/// One line: when, whose and what.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    /// Microseconds since the start of the machine.
    pub us: f64,
    /// The function's source-id in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub what: &'a What,
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum What {
    /// The first line.
    Start {
        format: u32,
        /// Microseconds since 1970 at the start of the machine.
        unix_us: u64,
    },
    Bind(Bind),
    /// As [`Self::Bind`], in place of what was bound before.
    Rebind(Bind),
    Unbind {
        pasid: Option<u32>,
        host_pasid: Option<u32>,
    },
    Refused {
        pasid: Option<u32>,
        error: String,
        /// The fault that the guest reads.
        reason: &'static str,
    },
    Invalidate {
        /// The guest's PASID, where one is bound.
        #[serde(skip_serializing_if = "Option::is_none")]
        pasid: Option<u32>,
        host_pasid: Option<u32>,
        caches: &'static str,
        #[serde(flatten)]
        range: Range,
        leaf_only: bool,
    },
    PageRequest {
        pasid: Option<u32>,
        group: u16,
        address: String,
        read: bool,
        write: bool,
        privileged: bool,
        last: bool,
    },
    Response {
        pasid: Option<u32>,
        group: u16,
        code: &'static str,
    },
    Fault {
        pasid: Option<u32>,
        reason: &'static str,
        reason_code: u8,
        address: String,
    },
    /// Events that are missing here: they came faster than they could be written.
    Dropped {
        events: u64,
    },
    /// The last line.
    End {
        events: u64,
        dropped: u64,
    },
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Bind {
    pasid: Option<u32>,
    host_pasid: Option<u32>,
    #[serde(flatten)]
    to: To,
}

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "to", rename_all = "snake_case")]
enum To {
    /// The host's second stage alone.
    SecondStage,
    /// A first stage of the guest on the host's second.
    Nested {
        /// The guest's CR3, without its low bits.
        table: String,
        levels: u8,
        sre: bool,
        eafe: bool,
        wpe: bool,
    },
}

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Range {
    All { address: &'static str },
    Some { address: String, bytes: u64 },
}

impl From<AddressRange> for Range {
    fn from(range: AddressRange) -> Self {
        match range {
            AddressRange::ALL => Self::All { address: "all" },
            range => {
                let bytes = u64::try_from(range.length()).unwrap_or(u64::MAX);
                Self::Some { address: hex(range.base()), bytes }
            }
        }
    }
}

fn hex(address: u64) -> String {
    format!("{address:#x}")
}

fn number(pasid: Option<Pasid>) -> Option<u32> {
    pasid.map(Pasid::get)
}

/// The name of a response code.
fn code(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::Success => "success",
        ResponseCode::InvalidRequest => "invalid request",
        ResponseCode::ResponseFailure => "response failure",
    }
}

impl What {
    /// `bound` is the guest's PASID that the host's of an invalidation stands for.
    pub fn new(event: &Event, bound: Option<Pasid>) -> Self {
        match event {
            Event::Bind { guest, host, to, replaced } => {
                let to = match to {
                    Attachment::SecondStage => To::SecondStage,
                    Attachment::Nested(table) => To::Nested {
                        table: hex(table.address),
                        levels: table.levels,
                        sre: table.sre,
                        eafe: table.eafe,
                        wpe: table.wpe,
                    },
                };
                let bind = Bind { pasid: number(*guest), host_pasid: number(*host), to };
                if *replaced { Self::Rebind(bind) } else { Self::Bind(bind) }
            }
            Event::Unbind { guest, host } => {
                Self::Unbind { pasid: number(*guest), host_pasid: number(*host) }
            }
            Event::Refused { guest, error } => Self::Refused {
                pasid: number(*guest),
                error: error.to_string(),
                reason: error.fault_reason().name(),
            },
            Event::Invalidate(invalidation) => {
                let (caches, leaf_only) = match invalidation.kind {
                    InvalidationKind::Iotlb { leaf_only } => ("iotlb", leaf_only),
                    InvalidationKind::DeviceTlb => ("device_tlb", false),
                };
                Self::Invalidate {
                    pasid: number(bound),
                    host_pasid: number(invalidation.pasid),
                    caches,
                    range: invalidation.range.into(),
                    leaf_only,
                }
            }
            Event::PageRequest(request) => Self::PageRequest {
                pasid: number(request.requester.pasid),
                group: request.group,
                address: hex(request.address & !0xfff),
                read: request.read,
                write: request.write,
                privileged: request.requester.privileged,
                last: request.last,
            },
            Event::Response(response) => Self::Response {
                pasid: number(response.pasid),
                group: response.group,
                code: code(response.code),
            },
            Event::Fault { guest, reason, address } => Self::Fault {
                pasid: number(*guest),
                reason: reason.name(),
                reason_code: reason.code(),
                address: hex(*address),
            },
        }
    }
}
