//! steno's in-memory executor with the same five steps.

use std::sync::Arc;

use steno::{
    ActionContext, ActionError, ActionFunc, ActionRegistry, DagBuilder, InMemorySecStore, Node,
    SagaDag, SagaId, SagaName, SagaType, SecClient,
};

#[derive(Debug)]
struct Five;

impl SagaType for Five {
    type ExecContextType = ();
}

async fn act(_: ActionContext<Five>) -> Result<u64, ActionError> {
    Ok(7)
}

async fn undo(_: ActionContext<Five>) -> steno::UndoResult {
    Ok(())
}

pub struct Site {
    sec: SecClient,
    dag: Arc<SagaDag>,
    registry: Arc<ActionRegistry<Five>>,
}

impl Site {
    pub fn new() -> Self {
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let sec = steno::sec(log, Arc::new(InMemorySecStore::new()));
        let action = ActionFunc::new_action("act", act, undo);
        let mut registry = ActionRegistry::new();
        registry.register(Arc::clone(&action));
        let mut builder = DagBuilder::new(SagaName::new("five"));
        for name in ["one", "two", "three", "four", "five"] {
            builder.append(Node::action(name, name, &*action));
        }
        let dag = builder.build().expect("a graph in order");
        let dag = SagaDag::new(dag, serde_json::json!({}));
        Self { sec, dag: Arc::new(dag), registry: Arc::new(registry) }
    }

    pub async fn run(&self) {
        let id = SagaId::from_bytes(uuid::Uuid::new_v4().into_bytes());
        let (dag, registry) = (Arc::clone(&self.dag), Arc::clone(&self.registry));
        let ended = self.sec.saga_create(id, Arc::new(()), dag, registry).await;
        let ended = ended.expect("it is created");
        self.sec.saga_start(id).await.expect("it starts");
        assert!(ended.await.kind.is_ok());
    }
}
