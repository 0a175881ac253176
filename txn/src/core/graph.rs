//! What a saga consists of: steps, what each needs, and how it may end.

use std::collections::HashSet;
use std::time::Duration;

use crate::config::Retry;
use crate::error::DefinitionError;

/// The number of a step within its definition.
pub(crate) type StepId = u16;

/// The most steps of one saga.
pub(crate) const MAX_STEPS: usize = 1000;
/// The longest name, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 100;

/// What a step is to the saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Before the pivot. Undone when the saga fails.
    Compensatable {
        /// False for a step without effect, which has nothing to undo.
        has_undo: bool,
    },
    /// The point of no return.
    Pivot,
    /// After the pivot. Retried until it succeeds.
    Retriable,
}

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: Box<str>,
    pub(crate) kind: Kind,
    /// The steps that must be done before. Invariant: all smaller than the step's own number.
    pub(crate) after: Box<[StepId]>,
    pub(crate) retry: Retry,
    pub(crate) undo_retry: Retry,
    /// The longest that one attempt may take.
    pub(crate) timeout: Duration,
    /// Whether an attempt of unknown outcome can be asked about.
    pub(crate) has_probe: bool,
}

/// All steps of a definition, in an order in which they may be done.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) name: Box<str>,
    pub(crate) version: u32,
    pub(crate) nodes: Box<[Node]>,
    /// Which steps need each step. Invariant: the inverse of `after`.
    dependents: Box<[Vec<StepId>]>,
    pivot: Option<StepId>,
    shape: u64,
}

impl Graph {
    pub(crate) fn new(name: &str, version: u32, nodes: Vec<Node>) -> Result<Self, DefinitionError> {
        check_name(name)?;
        if nodes.is_empty() || nodes.len() > MAX_STEPS {
            return Err(DefinitionError::Steps { count: nodes.len(), max: MAX_STEPS });
        }
        let mut names = HashSet::new();
        for node in &nodes {
            check_name(&node.name)?;
            if !names.insert(&*node.name) {
                return Err(DefinitionError::Duplicate { step: node.name.to_string() });
            }
            node.retry.validate()?;
            node.undo_retry.validate()?;
            if node.timeout.is_zero() {
                return Err(DefinitionError::Timeout { step: node.name.to_string() });
            }
        }
        let mut dependents = vec![Vec::new(); nodes.len()];
        for (id, node) in (0..).zip(&nodes) {
            for need in &node.after {
                dependents[usize::from(*need)].push(id);
            }
        }
        let pivot = (0..).zip(&nodes).find(|(_, node)| node.kind == Kind::Pivot).map(|(id, _)| id);
        let shape = shape(&nodes);
        Ok(Self {
            name: name.into(),
            version,
            dependents: dependents.into(),
            nodes: nodes.into(),
            pivot,
            shape,
        })
    }

    pub(crate) fn node(&self, id: StepId) -> &Node {
        &self.nodes[usize::from(id)]
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = StepId> + use<> {
        0..self.nodes.len() as StepId
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn dependents(&self, id: StepId) -> &[StepId] {
        &self.dependents[usize::from(id)]
    }

    pub(crate) fn pivot(&self) -> Option<StepId> {
        self.pivot
    }

    /// A hash of all that a running saga depends on: names, kinds and edges. The same in every
    /// process and version of this crate.
    pub(crate) fn shape(&self) -> u64 {
        self.shape
    }
}

fn check_name(name: &str) -> Result<(), DefinitionError> {
    let fits = !name.is_empty() && name.len() <= MAX_NAME_BYTES;
    // A slash separates the parts of a key.
    if fits && !name.contains(['/', '\0']) {
        return Ok(());
    }
    Err(DefinitionError::Name { name: name.chars().take(MAX_NAME_BYTES).collect() })
}

/// FNV-1a over the parts, each with its length: part of the stored format, so it never changes.
fn shape(nodes: &[Node]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in (bytes.len() as u32).to_le_bytes().iter().chain(bytes) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for node in nodes {
        add(node.name.as_bytes());
        add(&[match node.kind {
            Kind::Compensatable { has_undo: true } => 0,
            Kind::Compensatable { has_undo: false } => 1,
            Kind::Pivot => 2,
            Kind::Retriable => 3,
        }]);
        let mut after: Vec<StepId> = node.after.to_vec();
        after.sort_unstable();
        add(&after.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
    }
    hash
}
