//! Guests' disks, end to end: formats, file systems, what a killed loader leaves, errors of the host's.

mod errors;
mod formats;
mod from_a_guest;
mod hot_plug;
mod killed;
mod tools;

use xtask::scenario::Scenario;

use crate::host::on_host;

/// The scenarios about disks, for every engine.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("disk/qcow2-keeps-a-file-system", |env, kind| on_host(env, kind, formats::file_system)),
    Scenario::new("disk/comes-and-goes-while-the-guest-runs", |env, kind| on_host(env, kind, hot_plug::comes_and_goes)),
];

/// What asks the loader alone, whatever the engine.
pub(crate) const ON_ONE_ENGINE: &[Scenario] = &[
    Scenario::new("disk/all-formats-in-one-guest", formats::all_in_one_guest),
    Scenario::new("disk/nothing-flushed-is-lost-in-5-kills", |env, kind| killed::scenario(env, kind, 5)),
    Scenario::new("disk/nothing-flushed-is-lost-in-30-kills", |env, kind| killed::scenario(env, kind, 30)).on_demand(),
    Scenario::new("disk/full-host-is-an-error-to-the-guest", |env, kind| on_host(env, kind, errors::full)),
    Scenario::new("images/8-written-by-a-guest-are-as-qemu-has-them", |env, kind| from_a_guest::scenario(env, kind, 8)),
    Scenario::new("images/50-written-by-a-guest-are-as-qemu-has-them", |env, kind| {
        from_a_guest::scenario(env, kind, 50)
    })
    .on_demand(),
    Scenario::new("disk/bad-sectors-are-errors-to-the-guest", |env, kind| on_host(env, kind, errors::bad_sectors)),
];
