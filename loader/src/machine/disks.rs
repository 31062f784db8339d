//! A machine's disks, which can come and go while its guest runs.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::device;
use crate::devices::pci::HOT_SLOTS;
use crate::devices::pci::HotPlug;
use crate::devices::pci::PciRoot;
use crate::devices::virtio::VirtioPci;
use crate::devices::virtio::VirtioResources;
use crate::devices::virtio::block;
use crate::disk::BlockBackend;
use crate::run::RunError;

/// How long a guest that was asked to let an unused disk go has for saying that it did. One that does not know how never says so.
const SAYING_SO: Duration = Duration::from_secs(5);

/// A disk in a slot.
#[derive(Debug)]
struct Attached {
    name: String,
    slot: u8,
    /// Since when it is to go.
    leaving: Option<Instant>,
}

/// The disks of a machine.
#[derive(Debug)]
pub(super) struct Disks {
    root: Arc<PciRoot>,
    resources: VirtioResources,
    /// How the guest is told, if there is a way.
    hot_plug: Option<HotPlug>,
    attached: Vec<Attached>,
}

impl Disks {
    /// None yet.
    pub(super) fn new(root: &Arc<PciRoot>, resources: &VirtioResources) -> Self {
        Self { root: Arc::clone(root), resources: resources.clone(), hot_plug: None, attached: Vec::new() }
    }

    /// The guest is told by `hot_plug`.
    pub(super) fn tell_by(&mut self, hot_plug: HotPlug) {
        self.hot_plug = Some(hot_plug);
    }

    /// Puts a disk on the bus: into a slot from which it can be taken, as long as there is one.
    pub(super) fn attach(&mut self, name: &str, backend: Box<dyn BlockBackend>) -> Result<u8, RunError> {
        let new = block::device(name, name, backend).map_err(device)?;
        let slots = HOT_SLOTS.chain(1..HOT_SLOTS.start);
        let slot = VirtioPci::attach(&self.root, slots, new, &self.resources).map_err(device)?;
        self.attached.push(Attached { name: name.to_owned(), slot, leaving: None });
        Ok(slot)
    }

    /// The same while the guest runs, and tells the guest; whether that can be done.
    pub(super) fn add(&mut self, name: &str, backend: Box<dyn BlockBackend>) -> Result<bool, RunError> {
        let slot = self.attach(name, backend)?;
        let told = self.hot_plug.as_ref().filter(|_| HOT_SLOTS.contains(&slot));
        told.inspect(|hot_plug| hot_plug.added(slot));
        Ok(told.is_some())
    }

    /// Asks the guest to let a disk go, once more if it was asked before; `None` if there is no such disk, else whether the guest can
    /// be asked.
    pub(super) fn remove(&mut self, name: &str) -> Option<bool> {
        let disk = self.attached.iter_mut().find(|disk| disk.name == name)?;
        disk.leaving.get_or_insert_with(Instant::now);
        let asked = self.hot_plug.as_ref().filter(|_| HOT_SLOTS.contains(&disk.slot));
        asked.inspect(|hot_plug| hot_plug.leave(disk.slot));
        Some(asked.is_some())
    }

    /// Ends the disks that the guest has let go, with all that was written to them, and gives their names.
    pub(super) fn settle(&mut self) -> Vec<String> {
        let mut gone = Vec::new();
        for (slot, function) in self.hot_plug.iter().flat_map(HotPlug::take_ejected) {
            drop(function);
            gone.push(slot);
        }
        for disk in self.attached.iter().filter(|disk| !gone.contains(&disk.slot)).collect::<Vec<_>>() {
            // A guest that says nothing has let it go if its driver has.
            let patience = if self.hot_plug.is_some() { SAYING_SO } else { Duration::ZERO };
            let waited = disk.leaving.is_some_and(|since| since.elapsed() >= patience);
            if waited && self.root.is_idle(disk.slot) {
                drop(self.root.take(disk.slot));
                gone.push(disk.slot);
            }
        }
        let (gone, attached) =
            std::mem::take(&mut self.attached).into_iter().partition(|disk| gone.contains(&disk.slot));
        self.attached = attached;
        let gone: Vec<Attached> = gone;
        gone.into_iter().map(|disk| disk.name).collect()
    }

    /// Each disk's name, its slot, and whether it is to go.
    pub(super) fn list(&self) -> impl Iterator<Item = (&str, u8, bool)> {
        self.attached.iter().map(|disk| (disk.name.as_str(), disk.slot, disk.leaving.is_some()))
    }
}
