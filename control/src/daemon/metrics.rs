//! The metrics: a node's status in the OpenMetrics text format, which Prometheus reads.
//!
//! Every series of a fixed set of labels is there from the start, at 0: an alert on a rise needs a first value. Nothing
//! is counted a peer, because a cluster has thousands.

use std::fmt;
use std::sync::Arc;

use hyper::http::HeaderValue;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::status::{NodeStatus, Reading, State, Traffic};

/// Of the text.
pub(super) const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// The text.
pub(super) fn text(reading: Arc<Reading>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot(reading)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot(Arc<Reading>);

/// Pairs of label and value.
type Labels<'a> = Vec<(&'a str, &'a str)>;

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut page = Page(encoder);
        let node = &self.0.node;
        page.info("flannel_build", "The daemon.", &[vec![("version", &node.version)]])?;
        page.state(node)?;
        page.store(node)?;
        page.host(node)?;
        page.traffic(node)
    }
}

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn state(&mut self, node: &NodeStatus) -> fmt::Result {
        self.gauge("process_start_time_seconds", "When the daemon started.", node.started)?;
        self.gauge("flannel_ready", "1 when packets can flow.", node.is_ready().into())?;
        let degraded = node.state == State::Degraded;
        self.gauge("flannel_degraded", "1 when packets flow and something is wrong.", degraded.into())?;
        let checks: Vec<(Labels<'_>, u64)> = node
            .checks
            .iter()
            .map(|check| (vec![("check", &*check.name)], u64::from(check.text.is_empty())))
            .collect();
        self.gauges("flannel_check_ok", "1 when this part of readiness is as it should be.", &checks)?;
        if let Some(backend) = &node.backend {
            let devices: Vec<Labels<'_>> = backend
                .devices
                .iter()
                .map(|device| {
                    vec![
                        ("backend", &*backend.kind),
                        ("carrier", &*device.carrier),
                        ("device", device.name.as_str()),
                    ]
                })
                .collect();
            self.info("flannel_backend", "How packets travel.", &devices)?;
        }
        if let Some(mtu) = node.mtu {
            self.gauge("flannel_mtu_bytes", "The MTU for pods.", mtu.into())?;
        }
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.gauges(
            "flannel_peers",
            "Other nodes' leases, by what is made of them.",
            &[
                (vec![("state", "used")], count(node.peers.used)),
                (vec![("state", "refused")], count(node.peers.refused)),
                (vec![("state", "held_back")], count(node.peers.held_back)),
            ],
        )
    }

    fn store(&mut self, node: &NodeStatus) -> fmt::Result {
        let fresh = node.store.last_heard.is_some() && node.store.stale_since.is_none();
        self.gauge("flannel_store_connected", "1 while the store of leases is heard.", fresh.into())?;
        if let Some(last) = node.store.last_heard {
            let help = "When the store of leases last answered or told something.";
            self.gauge("flannel_store_last_success_timestamp_seconds", help, last)?;
        }
        if let Some(end) = node.lease.as_ref().and_then(|lease| lease.expires) {
            let help = "When this node's lease ends; absent when it never does.";
            self.gauge("flannel_lease_expiry_timestamp_seconds", help, end)?;
        }
        Ok(())
    }

    fn host(&mut self, node: &NodeStatus) -> fmt::Result {
        let settled = node.reconcile.last_ok.is_some() && node.reconcile.trouble.is_none();
        self.gauge("flannel_reconcile_settled", "1 when the host is as it should be.", settled.into())?;
        if let Some(last) = node.reconcile.last_ok {
            let help = "When the host was last found, or made, as it should be.";
            self.gauge("flannel_reconcile_last_success_timestamp_seconds", help, last)?;
        }
        let repairs: Vec<(Labels<'_>, u64)> = node
            .reconcile
            .repairs
            .iter()
            .map(|(kind, repairs)| (vec![("kind", &**kind)], *repairs))
            .collect();
        self.counters(
            "flannel_reconcile_repairs",
            "Things that somebody had changed and that were put right.",
            &repairs,
        )?;
        let written = node.subnet_file.written.into();
        self.gauge("flannel_subnet_file_written", "1 when subnet.env is there.", written)?;
        let fine = (node.rules.trouble.is_none() && node.rules.guard_trouble.is_none()).into();
        self.gauge("flannel_rules_ok", "1 when the packet filter rules are as they should be.", fine)?;
        match node.rules.guard_drops {
            Some(drops) => {
                let help = "Packets from unknown nodes that the guard of kernel VXLAN dropped.";
                let encoder =
                    self.0.encode_descriptor("flannel_guard_drops", help, None, MetricType::Counter)?;
                ConstCounter::new(drops).encode(encoder)
            }
            None => Ok(()),
        }
    }

    fn traffic(&mut self, node: &NodeStatus) -> fmt::Result {
        let devices: Vec<(&str, &Traffic)> = node
            .backend
            .iter()
            .flat_map(|backend| &backend.devices)
            .filter_map(|device| Some((device.name.as_str(), device.traffic.as_ref()?)))
            .collect();
        let flows: Vec<_> = devices
            .iter()
            .flat_map(|(device, traffic)| {
                [("rx", &traffic.received), ("tx", &traffic.sent)].map(|(way, flow)| (*device, way, flow))
            })
            .collect();
        for (name, help, count) in [
            ("flannel_packets", "Packets taken in: rx from the wire, tx from the pods.", 0),
            ("flannel_bytes", "Bytes taken in.", 1),
            ("flannel_passed_packets", "Packets passed on.", 2),
            ("flannel_passed_bytes", "Bytes passed on.", 3),
        ] {
            let counts: Vec<(Labels<'_>, u64)> = flows
                .iter()
                .map(|(device, way, flow)| {
                    let counts = [flow.packets, flow.bytes, flow.passed, flow.passed_bytes];
                    (vec![("device", *device), ("direction", *way)], counts[count])
                })
                .collect();
            self.counters(name, help, &counts)?;
        }
        let drops: Vec<(Labels<'_>, u64)> = flows
            .iter()
            .flat_map(|(device, way, flow)| {
                flow.drops.iter().map(|(reason, count)| {
                    (vec![("device", *device), ("direction", *way), ("reason", &**reason)], *count)
                })
            })
            .collect();
        self.counters("flannel_drops", "Packets that were not passed on, each under one reason.", &drops)?;
        type Count = fn(&Traffic) -> u64;
        let others: [(&str, &str, Count); 6] = [
            ("flannel_icmp_replies", "ICMP replies made.", |t| t.icmp_replies),
            ("flannel_icmp_replies_limited", "ICMP replies that the rate limit held back.", |t| {
                t.icmp_limited
            }),
            ("flannel_foreign_sources", "Packets from outside the cluster that were passed.", |t| {
                t.foreign_sources
            }),
            ("flannel_unfinished_checksums", "Inner checksums that a peer had left unfinished.", |t| {
                t.unfinished_checksums
            }),
            ("flannel_socket_overflows", "Messages that found the socket's buffer full.", |t| {
                t.socket_overflows
            }),
            ("flannel_ring_overflows", "Packets that found the device's ring full.", |t| t.ring_overflows),
        ];
        for (name, help, count) in others {
            let counts: Vec<_> =
                devices.iter().map(|(device, traffic)| (vec![("device", *device)], count(traffic))).collect();
            self.counters(name, help, &counts)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn gauges(&mut self, name: &str, help: &str, values: &[(Labels<'_>, u64)]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values
            .iter()
            .try_for_each(|(labels, value)| ConstGauge::new(*value).encode(family.encode_family(labels)?))
    }

    /// The format adds `_total` to the name.
    fn counters(&mut self, name: &str, help: &str, values: &[(Labels<'_>, u64)]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        values
            .iter()
            .try_for_each(|(labels, value)| ConstCounter::new(*value).encode(family.encode_family(labels)?))
    }

    /// The format adds `_info` to the name.
    fn info(&mut self, name: &str, help: &str, values: &[Labels<'_>]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Info)?;
        values.iter().try_for_each(|labels| family.encode_info(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::well;

    #[test]
    fn every_reason_has_a_series_from_the_start() {
        let text = text(Arc::new(Reading { node: well(), peers: Arc::default() })).unwrap();
        assert!(text.ends_with("# EOF\n"), "{text}");
        for reason in dataplane_core::DropReason::ALL {
            for way in ["rx", "tx"] {
                let series = format!(
                    "flannel_drops_total{{device=\"flannel.1\",direction=\"{way}\",reason=\"{reason}\"}} 0\n"
                );
                assert!(text.contains(&series), "no {series} in\n{text}");
            }
        }
        for line in [
            "flannel_build_info{version=\"0.1.0\"} 1\n",
            "flannel_backend_info{backend=\"vxlan\",carrier=\"engine\",device=\"flannel.1\"} 1\n",
            "flannel_ready 1\n",
            "flannel_peers{state=\"used\"} 3\n",
            "flannel_lease_expiry_timestamp_seconds 90000\n",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
        assert!(!text.contains("flannel_guard_drops"), "there is no guard");
    }

    #[test]
    fn a_count_without_labels_has_no_braces() {
        let mut node = well();
        node.rules.guard_drops = Some(5);
        let text = text(Arc::new(Reading { node, peers: Arc::default() })).unwrap();
        assert!(text.contains("\nflannel_guard_drops_total 5\n"), "{text}");
    }
}
