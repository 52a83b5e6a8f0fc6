//! Measurements: that they count what passed, and notice what did not.

use std::time::Duration;

use lab::cluster::vxlan::subnets;
use lab::traffic::{echo, tcp, udp};
use lab::{Case, Plan, Scene};

use crate::clusters::{path, with_pods};

pub(crate) fn cases() -> Vec<Case> {
    lab::cases![
        tcp_streams_share_the_path_and_are_counted_at_the_receiver,
        a_rate_is_kept,
        udp_floods_are_counted_at_the_receiver,
        segmented_sends_arrive_as_single_datagrams,
        round_trips_are_timed,
        a_closed_path_is_an_error_and_no_figure,
    ]
}

fn tcp_streams_share_the_path_and_are_counted_at_the_receiver(_: &Scene) -> anyhow::Result<()> {
    let cluster = with_pods(&Plan::pair(), |cluster| cluster.host_routes(&subnets(2, true, true)))?;
    let plan = tcp::Transfer::timed(Duration::from_millis(300)).streams(4);
    let report = tcp::transfer(path(&cluster, false)?, &plan)?;
    assert_eq!(report.per_stream.len(), 4);
    assert_eq!(report.per_stream.iter().sum::<u64>(), report.bytes);
    assert!(
        report.bytes > 1_000_000 && report.fairness > 0.25 && report.fairness <= 1.0 + 1e-9,
        "{report:?}"
    );
    assert!(report.cpu.machine > 0.0 && report.cpu_seconds_per_gigabit > 0.0, "{report:?}");
    let json = serde_json::to_value(&report)?;
    assert_eq!(json["bytes"], report.bytes);
    Ok(())
}

fn a_rate_is_kept(_: &Scene) -> anyhow::Result<()> {
    let cluster = with_pods(&Plan::pair(), |cluster| cluster.host_routes(&subnets(2, true, false)))?;
    let plan =
        tcp::Transfer { rate: Some(80e6), write: 10_000, ..tcp::Transfer::timed(Duration::from_millis(500)) };
    let report = tcp::transfer(path(&cluster, true)?, &plan)?;
    // Above only by what a writer that was late catches up with.
    assert!(report.gigabits_per_second < 0.12, "{report:?}");
    let plan = udp::Flood { rate: Some(5000.0), ..udp::Flood::new(100, Duration::from_millis(400)) };
    let report = udp::flood(path(&cluster, true)?, &plan)?;
    assert!(report.sent <= 2100, "{report:?}");
    assert_eq!(report.received, report.sent, "{report:?}");
    Ok(())
}

fn udp_floods_are_counted_at_the_receiver(_: &Scene) -> anyhow::Result<()> {
    let cluster = with_pods(&Plan::pair(), |cluster| cluster.host_routes(&subnets(2, true, true)))?;
    for v4 in [true, false] {
        let plan = udp::Flood { flows: 3, ..udp::Flood::new(64, Duration::from_millis(200)) };
        let report = udp::flood(path(&cluster, v4)?, &plan)?;
        assert!(report.received > 1000 && report.received <= report.sent, "{report:?}");
        assert_eq!(report.wrong_size, 0);
        assert!((report.loss - (1.0 - report.received as f64 / report.sent as f64)).abs() < 1e-9);
    }
    Ok(())
}

fn segmented_sends_arrive_as_single_datagrams(_: &Scene) -> anyhow::Result<()> {
    let cluster = with_pods(&Plan::pair(), |cluster| cluster.host_routes(&subnets(2, true, false)))?;
    let plan = udp::Flood { segments: Some(40), ..udp::Flood::new(1200, Duration::from_millis(200)) };
    let report = udp::flood(path(&cluster, true)?, &plan)?;
    assert_eq!(report.sent % 40, 0);
    assert!(report.received > 1000, "{report:?}");
    assert_eq!(report.wrong_size, 0);
    Ok(())
}

fn round_trips_are_timed(_: &Scene) -> anyhow::Result<()> {
    let cluster = with_pods(&Plan::pair(), |cluster| cluster.host_routes(&subnets(2, true, false)))?;
    let report = echo::udp_round_trips(path(&cluster, true)?, 64, 200, Duration::from_micros(200))?;
    assert_eq!((report.count, report.lost), (200, 0));
    assert!(
        report.min > 0.0 && report.min <= report.p50 && report.p50 <= report.p99 && report.p99 <= report.max
    );
    Ok(())
}

fn a_closed_path_is_an_error_and_no_figure(_: &Scene) -> anyhow::Result<()> {
    let cluster = with_pods(&Plan::pair(), |cluster| cluster.host_routes(&subnets(2, true, false)))?;
    let mut path = path(&cluster, true)?;
    // The receiver's end is asked for in a namespace that has no such address.
    path.to = cluster.nodes()[0].namespace();
    assert!(tcp::transfer(path, &tcp::Transfer::bytes(1)).is_err());
    assert!(udp::flood(path, &udp::Flood::new(64, Duration::from_millis(10))).is_err());
    assert!(echo::udp_sizes(path, 1..2).is_err());
    assert!(
        udp::flood(path, &udp::Flood { segments: Some(65), ..udp::Flood::new(64, Duration::ZERO) }).is_err()
    );
    Ok(())
}
