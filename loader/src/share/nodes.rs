//! The files that a guest knows of.
//!
//! A guest keeps as many as its memory holds, and each would take a descriptor (on Windows: a handle) of the host's. So of those
//! that were not used for long only the name and the folder are kept. Such a file is found again by its name, and it must be the
//! same file: by what the host tells files apart by.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::ffi::CStr;
use std::ffi::CString;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use super::Errno;
use super::NodeId;
use super::ROOT;

/// What holds a file of the host's, whatever becomes of its name: a descriptor.
pub(crate) trait Held: Sized {
    /// What tells a file from all others of the share.
    type Key: Copy + Debug + Eq + Hash;
    /// What a file is, as long as it is there.
    type Kind: Copy + Debug + Eq;

    /// A name's file within this folder, whatever it is: a symbolic link is the link.
    fn find(&self, name: &CStr) -> Result<(Self, Identity<Self>), Errno>;
}

/// Which file it is.
pub(crate) type Identity<F> = (<F as Held>::Key, <F as Held>::Kind);

/// Most files that a guest can have us know: some 200 MB of host memory.
const MOST_NODES: usize = 1 << 20;
/// Folders above each other, when a file is looked for again; more than the longest path has.
const DEEPEST: usize = 2048;

#[derive(Debug)]
struct Node<F: Held> {
    key: F::Key,
    kind: F::Kind,
    parent: NodeId,
    name: CString,
    file: Option<Arc<F>>,
    /// How often the guest was told of it.
    known: u64,
    /// Times that it is open: then it keeps its descriptor.
    open: u32,
    /// It was used since its descriptor was looked at last.
    used: bool,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Nodes<F: Held> {
    nodes: HashMap<NodeId, Node<F>>,
    by_key: HashMap<F::Key, NodeId>,
    next: NodeId,
    /// Nodes with descriptors, those that came first at the front; some may have none any more.
    held: VecDeque<NodeId>,
    /// How many have one, and how many may.
    count: usize,
    most: usize,
    most_nodes: usize,
}

impl<F: Held> Nodes<F> {
    /// A table with the folder itself, that keeps up to `most` descriptors.
    pub(crate) fn new(root: F, (key, kind): Identity<F>, most: usize) -> Self {
        let node = Node {
            key,
            kind,
            parent: ROOT,
            name: CString::default(),
            file: Some(Arc::new(root)),
            known: 1,
            open: 1,
            used: true,
        };
        Self {
            by_key: HashMap::from([(node.key, ROOT)]),
            nodes: HashMap::from([(ROOT, node)]),
            next: ROOT + 1,
            held: VecDeque::new(),
            count: 0,
            most: most.max(1),
            most_nodes: MOST_NODES,
        }
    }

    #[cfg(test)]
    pub(crate) fn limit(&mut self, most_nodes: usize) {
        self.most_nodes = most_nodes;
    }

    /// How many files are known, and how many descriptors are held, those of files that are open counted.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.nodes.len(), self.nodes.values().filter(|node| node.file.is_some()).count())
    }

    /// The guest is told of a file that is `name` in `parent`.
    pub(crate) fn enter(
        &mut self,
        parent: NodeId,
        name: &CStr,
        file: F,
        (key, kind): Identity<F>,
    ) -> Result<NodeId, Errno> {
        if let Some(&id) = self.by_key.get(&key) {
            if id == ROOT {
                return Ok(ROOT);
            }
            // An inode of another type is one that was used again.
            if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.kind == kind) {
                node.known += 1;
                (node.parent, node.name) = (parent, name.to_owned());
                if node.file.is_none() {
                    self.hold(id, file);
                }
                return Ok(id);
            }
        }
        if self.nodes.len() >= self.most_nodes {
            return Err(Errno::NOMEM);
        }
        let id = self.next;
        self.next += 1;
        let name = name.to_owned();
        self.nodes.insert(id, Node { key, kind, parent, name, file: None, known: 1, open: 0, used: true });
        self.by_key.insert(key, id);
        self.hold(id, file);
        Ok(id)
    }

    /// Gives a node its descriptor, and takes one from another if they are too many.
    fn hold(&mut self, id: NodeId, file: F) -> Arc<F> {
        let file = Arc::new(file);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.file = Some(Arc::clone(&file));
            node.used = true;
            self.held.push_back(id);
            self.count += 1;
        }
        let mut looks = 2 * self.held.len();
        while self.count > self.most && looks > 0 {
            looks -= 1;
            let Some(oldest) = self.held.pop_front() else { break };
            match self.nodes.get_mut(&oldest) {
                Some(node) if node.file.is_none() => {}
                Some(node) if node.open == 0 && !node.used && oldest != id => {
                    node.file = None;
                    self.count -= 1;
                }
                Some(node) => {
                    node.used = false;
                    self.held.push_back(oldest);
                }
                None => {}
            }
        }
        file
    }

    /// A file's descriptor.
    pub(crate) fn file(&mut self, id: NodeId) -> Result<Arc<F>, Errno> {
        // Upwards to one that has its descriptor, then down again by the names.
        let mut way = Vec::new();
        let mut at = id;
        let mut file = loop {
            let node = self.nodes.get_mut(&at).ok_or(Errno::STALE)?;
            node.used = true;
            if let Some(file) = &node.file {
                break Arc::clone(file);
            }
            way.push(at);
            if way.len() > DEEPEST {
                return Err(Errno::STALE);
            }
            at = node.parent;
        };
        for id in way.into_iter().rev() {
            let node = self.nodes.get(&id).ok_or(Errno::STALE)?;
            let (found, identity) = file.find(&node.name).map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR => Errno::STALE,
                error => error,
            })?;
            if identity != (node.key, node.kind) {
                return Err(Errno::STALE);
            }
            file = self.hold(id, found);
        }
        Ok(file)
    }

    /// A file's descriptor and type.
    pub(crate) fn typed(&mut self, id: NodeId) -> Result<(Arc<F>, F::Kind), Errno> {
        let file = self.file(id)?;
        Ok((file, self.nodes.get(&id).ok_or(Errno::STALE)?.kind))
    }

    /// A file is opened.
    pub(crate) fn opened(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.open += 1;
        }
    }

    /// A file is closed.
    pub(crate) fn closed(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|_| id != ROOT) {
            node.open = node.open.saturating_sub(1);
        }
        self.drop_unknown(id);
    }

    /// A file is `name` in `parent` now.
    pub(crate) fn moved(&mut self, key: F::Key, parent: NodeId, name: &CStr) {
        let id = self.by_key.get(&key).copied().filter(|&id| id != ROOT);
        if let Some(node) = id.and_then(|id| self.nodes.get_mut(&id)) {
            (node.parent, node.name) = (parent, name.to_owned());
        }
    }

    /// The guest knows a file `count` times less.
    pub(crate) fn forget(&mut self, id: NodeId, count: u64) {
        if id == ROOT {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.known = node.known.saturating_sub(count);
        }
        self.drop_unknown(id);
    }

    /// Drops a file that the guest neither knows nor has open.
    fn drop_unknown(&mut self, id: NodeId) {
        if id == ROOT || self.nodes.get(&id).is_none_or(|node| node.known > 0 || node.open > 0) {
            return;
        }
        let Some(node) = self.nodes.remove(&id) else { return };
        if self.by_key.get(&node.key) == Some(&id) {
            self.by_key.remove(&node.key);
        }
        if node.file.is_some() {
            self.count -= 1;
        }
        // What is left of it in `held` goes when there is more of that than of what is held.
        if self.held.len() > 2 * self.count + 64 {
            let nodes = &self.nodes;
            self.held.retain(|id| nodes.get(id).is_some_and(|node| node.file.is_some()));
        }
    }

    /// Whether the guest has a file open.
    #[cfg(any(windows, test))]
    pub(crate) fn is_open(&self, key: F::Key) -> bool {
        self.by_key.get(&key).and_then(|id| self.nodes.get(id)).is_some_and(|node| node.open > 0)
    }

    /// Whether a folder is the one of this key, or in it.
    #[cfg(any(windows, test))]
    pub(crate) fn is_within(&self, mut id: NodeId, key: F::Key) -> bool {
        for _ in 0..DEEPEST {
            match self.nodes.get(&id) {
                Some(node) if node.key == key => return true,
                Some(node) if id != ROOT => id = node.parent,
                _ => return false,
            }
        }
        false
    }

    /// The key of the folder that a file was found in last, of the file itself for the shared folder.
    #[cfg(any(windows, test))]
    pub(crate) fn parent_key(&self, id: NodeId) -> Option<F::Key> {
        self.nodes.get(&self.nodes.get(&id)?.parent).map(|parent| parent.key)
    }

    /// Gives up the descriptor of a file that is about to go, unless the guest has it open.
    #[cfg(any(windows, test))]
    pub(crate) fn let_go(&mut self, key: F::Key) {
        if let Some(&id) = self.by_key.get(&key) {
            self.drop_descriptor(id);
            let nodes = &self.nodes;
            self.held.retain(|id| nodes.get(id).is_some_and(|node| node.file.is_some()));
        }
    }

    /// Gives up all descriptors but those of files that the guest has open.
    #[cfg(any(windows, test))]
    pub(crate) fn let_all_go(&mut self) {
        for id in std::mem::take(&mut self.held) {
            self.drop_descriptor(id);
            if self.nodes.get(&id).is_some_and(|node| node.file.is_some()) {
                self.held.push_back(id);
            }
        }
    }

    #[cfg(any(windows, test))]
    fn drop_descriptor(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.open == 0 && node.file.is_some()) {
            node.file = None;
            self.count -= 1;
        }
    }

    /// Only the folder itself is known.
    pub(crate) fn forget_all(&mut self) {
        self.nodes.retain(|&id, _| id == ROOT);
        self.by_key.retain(|_, id| *id == ROOT);
        self.held.clear();
        self.count = 0;
    }
}
