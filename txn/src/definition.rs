//! How a saga is written down: typed steps, and the code of each.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Retry;
use crate::core::{Call, Failure, Graph, Kind, MAX_STEPS, Node, StepId};
use crate::error::{DefinitionError, StepError};

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Act = dyn Fn(StepCx, &Bytes, &[Bytes]) -> BoxFuture<Result<Bytes, StepError>> + Send + Sync;
type Undo =
    dyn Fn(StepCx, &Bytes, Option<&Bytes>) -> BoxFuture<Result<(), StepError>> + Send + Sync;
type Probe = dyn Fn(StepCx, &Bytes) -> BoxFuture<Result<Option<Bytes>, StepError>> + Send + Sync;

/// What a step's code knows about the call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepCx {
    /// The saga's id.
    pub saga: Arc<str>,
    /// The idempotency key of this call: saga, step and direction, the same on every attempt, in
    /// every process. Give it to the peer.
    pub key: Arc<str>,
    /// Grows with each process that opens the store: a peer that keeps the largest one can refuse
    /// calls of a process that has been replaced.
    pub epoch: u64,
}

/// A step's output, to be needed by later steps.
pub struct StepRef<T> {
    id: StepId,
    definer: u64,
    _output: PhantomData<fn() -> T>,
}

impl<T> Clone for StepRef<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for StepRef<T> {}

impl<T> fmt::Debug for StepRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StepRef").field(&self.id).finish()
    }
}

impl<T: DeserializeOwned> StepRef<T> {
    pub(crate) fn id(&self) -> StepId {
        self.id
    }

    pub(crate) fn decode(output: &Bytes) -> Result<T, serde_json::Error> {
        serde_json::from_slice(output)
    }
}

/// The outputs that a step needs: `()`, a [`StepRef`], or a tuple of two to four.
pub trait Inputs: Send + Sync + 'static {
    /// What the step's code is given.
    type Values: Send;
    #[doc(hidden)]
    fn needs(&self) -> Vec<(StepId, u64)>;
    #[doc(hidden)]
    fn decode(outputs: &[Bytes]) -> Result<Self::Values, serde_json::Error>;
}

impl Inputs for () {
    type Values = ();

    fn needs(&self) -> Vec<(StepId, u64)> {
        Vec::new()
    }

    fn decode(_: &[Bytes]) -> Result<(), serde_json::Error> {
        Ok(())
    }
}

impl<A: DeserializeOwned + Send + 'static> Inputs for StepRef<A> {
    type Values = A;

    fn needs(&self) -> Vec<(StepId, u64)> {
        vec![(self.id, self.definer)]
    }

    fn decode(outputs: &[Bytes]) -> Result<A, serde_json::Error> {
        serde_json::from_slice(outputs.first().map_or(&[], |output| &output[..]))
    }
}

macro_rules! tuples {
    ($($name:ident $at:tt),+) => {
        impl<$($name: DeserializeOwned + Send + 'static),+> Inputs for ($(StepRef<$name>,)+) {
            type Values = ($($name,)+);

            fn needs(&self) -> Vec<(StepId, u64)> {
                vec![$((self.$at.id, self.$at.definer)),+]
            }

            fn decode(outputs: &[Bytes]) -> Result<Self::Values, serde_json::Error> {
                Ok(($(serde_json::from_slice::<$name>(
                    outputs.get($at).map_or(&[], |output| &output[..]),
                )?,)+))
            }
        }
    };
}
tuples!(A 0, B 1);
tuples!(A 0, B 1, C 2);
tuples!(A 0, B 1, C 2, D 3);

/// A step that is being described.
#[must_use = "a step does nothing until a definer is given it"]
pub struct Step<In, Out> {
    name: String,
    needs: Vec<(StepId, u64)>,
    after: Vec<(StepId, u64)>,
    retry: Retry,
    undo_retry: Retry,
    timeout: Duration,
    act: Arc<Act>,
    undo: Option<Arc<Undo>>,
    probe: Option<Arc<Probe>>,
    _types: PhantomData<fn(In) -> Out>,
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes, StepError> {
    let encoded = serde_json::to_vec(value);
    // It has had its effect, but its output is of no use.
    encoded.map(Bytes::from).map_err(|error| StepError::Unknown(format!("its output: {error}")))
}

fn decode<T: DeserializeOwned>(value: &Bytes) -> Result<T, StepError> {
    let decoded = serde_json::from_slice(value);
    decoded.map_err(|error| StepError::Domain(format!("what was recorded: {error}")))
}

impl<In, Out> Step<In, Out>
where
    In: DeserializeOwned + Send + Sync + 'static,
    Out: Serialize + DeserializeOwned + Send + 'static,
{
    /// A step that calls `act` with the saga's input and the outputs of the steps that it needs.
    /// It is called again, with the same key, until it gives an answer.
    pub fn new<I, F, R>(name: impl Into<String>, inputs: I, act: F) -> Self
    where
        I: Inputs,
        F: Fn(StepCx, In, I::Values) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Out, StepError>> + Send + 'static,
    {
        let act = Arc::new(act);
        let act: Arc<Act> = Arc::new(move |cx, input, outputs| {
            let values = decode(input).and_then(|input| {
                let values = I::decode(outputs);
                let error = |error| StepError::Domain(format!("what was recorded: {error}"));
                Ok((input, values.map_err(error)?))
            });
            let act = Arc::clone(&act);
            Box::pin(async move {
                let (input, values) = values?;
                encode(&act(cx, input, values).await?)
            })
        });
        Self {
            name: name.into(),
            needs: inputs.needs(),
            after: Vec::new(),
            retry: Retry::default(),
            undo_retry: Retry::default(),
            timeout: Duration::from_secs(30),
            act,
            undo: None,
            probe: None,
            _types: PhantomData,
        }
    }

    /// Begins only after another step, whose output it does not need.
    pub fn after<T>(mut self, step: &StepRef<T>) -> Self {
        self.after.push((step.id, step.definer));
        self
    }

    /// How the step is tried again. Default [`Retry::default`].
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The longest that one attempt may take; its outcome is unknown then. Default 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Asks whether an attempt of unknown outcome has run, instead of calling it again: for peers
    /// that know no keys. `Some`: with this output. `None`: it has not, and will not.
    pub fn probe<F, R>(mut self, probe: F) -> Self
    where
        F: Fn(StepCx, In) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Option<Out>, StepError>> + Send + 'static,
    {
        let probe = Arc::new(probe);
        self.probe = Some(Arc::new(move |cx, input| {
            let input = decode(input);
            let probe = Arc::clone(&probe);
            Box::pin(async move {
                let answer = probe(cx, input?).await?;
                answer.as_ref().map(encode).transpose()
            })
        }));
        self
    }

    /// Undoes the step when the saga fails. It is given the output, or `None` if the action may or
    /// may not have run: then it must also keep a late action from having its effect, under the
    /// action's key. It is called again until it succeeds. Only for steps before the pivot.
    pub fn undo<F, R>(mut self, undo: F) -> Compensatable<In, Out>
    where
        F: Fn(StepCx, In, Option<Out>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), StepError>> + Send + 'static,
    {
        let undo = Arc::new(undo);
        self.undo = Some(Arc::new(move |cx, input, output| {
            let decoded =
                decode(input).and_then(|input| Ok((input, output.map(decode).transpose()?)));
            let undo = Arc::clone(&undo);
            Box::pin(async move {
                let (input, output) = decoded?;
                undo(cx, input, output).await
            })
        }));
        Compensatable(self)
    }
}

impl<In, Out> fmt::Debug for Step<In, Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A step with its compensation: fits only before the pivot.
#[must_use = "a step does nothing until a definer is given it"]
#[derive(Debug)]
pub struct Compensatable<In, Out>(Step<In, Out>);

impl<In, Out> Compensatable<In, Out> {
    /// How the undo is tried again. Default [`Retry::default`].
    pub fn undo_retry(mut self, retry: Retry) -> Self {
        self.0.undo_retry = retry;
        self
    }
}

/// Longer reasons are cut: they come from foreign code, and are recorded.
const WHY_BYTES_MAX: usize = 1024;

pub(crate) fn cut(mut why: String) -> String {
    let end = (0..=WHY_BYTES_MAX.min(why.len())).rev().find(|at| why.is_char_boundary(*at));
    why.truncate(end.unwrap_or(0));
    why
}

impl From<StepError> for Failure {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Domain(why) => Self::Domain(cut(why)),
            StepError::Transient(why) => Self::Transient(cut(why)),
            StepError::Unknown(why) => Self::Unknown(cut(why)),
        }
    }
}

/// The code of one step.
pub(crate) struct Code {
    /// The steps whose outputs it is given, in the order of its arguments.
    pub(crate) needs: Vec<StepId>,
    act: Arc<Act>,
    undo: Option<Arc<Undo>>,
    probe: Option<Arc<Probe>>,
}

/// A definition without its types.
pub(crate) struct Definition {
    pub(crate) graph: Arc<Graph>,
    pub(crate) code: Box<[Code]>,
}

/// What one call is given.
pub(crate) struct Arguments<'a> {
    pub(crate) cx: StepCx,
    pub(crate) input: &'a Bytes,
    pub(crate) needs: &'a [Bytes],
    pub(crate) own: Option<&'a Bytes>,
}

/// What a call answers.
pub(crate) enum Answer {
    Acted(Result<Bytes, Failure>),
    Probed(Result<Option<Bytes>, Failure>),
    Undone(Result<(), Failure>),
}

impl Definition {
    /// Starts a call. A panic is an unknown outcome.
    pub(crate) fn call(&self, step: StepId, call: Call, with: Arguments<'_>) -> BoxFuture<Answer> {
        let code = &self.code[usize::from(step)];
        let Arguments { cx, input, needs, own } = with;
        match call {
            Call::Act => {
                let future = guard(|| (code.act)(cx, input, needs));
                Box::pin(async move { Answer::Acted(future.await) })
            }
            Call::Probe => {
                let probe = code.probe.as_ref().expect("only steps with a probe are probed");
                let future = guard(|| probe(cx, input));
                Box::pin(async move { Answer::Probed(future.await) })
            }
            Call::Undo => {
                let undo =
                    code.undo.as_ref().expect("only steps with an undo are undone by a call");
                let future = guard(|| undo(cx, input, own));
                Box::pin(async move { Answer::Undone(future.await) })
            }
        }
    }
}

/// Runs foreign code so that a panic in it becomes a failure.
fn guard<T: Send + 'static>(
    start: impl FnOnce() -> BoxFuture<Result<T, StepError>>,
) -> BoxFuture<Result<T, Failure>> {
    let panicked = |panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Failure::from(StepError::Unknown(format!("it panicked: {text}")))
    };
    match catch_unwind(AssertUnwindSafe(start)) {
        Ok(mut future) => Box::pin(std::future::poll_fn(move |cx| {
            match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(result)) => Poll::Ready(result.map_err(Failure::from)),
                Err(panic) => Poll::Ready(Err(panicked(panic))),
            }
        })),
        Err(panic) => {
            let failure = panicked(panic);
            Box::pin(async move { Err(failure) })
        }
    }
}

/// A definition that was checked. Cheap to clone.
pub struct Saga<In> {
    pub(crate) definition: Arc<Definition>,
    _input: PhantomData<fn(In)>,
}

impl<In> Clone for Saga<In> {
    fn clone(&self) -> Self {
        Self { definition: Arc::clone(&self.definition), _input: PhantomData }
    }
}

impl<In> fmt::Debug for Saga<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Graph { name, version, .. } = &*self.definition.graph;
        f.debug_struct("Saga").field("name", name).field("version", version).finish()
    }
}

impl<In> Saga<In>
where
    In: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Begins a definition. Sagas that are under way end on the definition of the name and version
    /// that they began with: give a changed one a new version, and keep the old one registered
    /// until its last saga has ended.
    pub fn define(name: impl Into<String>, version: u32) -> Definer<In> {
        static DEFINERS: AtomicU64 = AtomicU64::new(0);
        Definer(Parts {
            name: name.into(),
            version,
            definer: DEFINERS.fetch_add(1, Ordering::Relaxed),
            nodes: Vec::new(),
            code: Vec::new(),
            foreign: None,
            _input: PhantomData,
        })
    }
}

#[cfg(feature = "testing")]
impl<In> Saga<In> {
    /// The same definition, each of whose calls goes through the crash-point kit.
    pub(crate) fn through(&self, kit: &Arc<crate::testing::Kit>) -> Self {
        let graph = Arc::clone(&self.definition.graph);
        let code = self.definition.code.iter().zip(graph.ids()).map(|(code, id)| {
            let step: Arc<str> = graph.node(id).name.as_ref().into();
            let named = |call| (Arc::clone(kit), Arc::clone(&step), call);
            let (act, at) = (Arc::clone(&code.act), named("act"));
            let hooked: Arc<Act> = Arc::new(move |cx, input, needs| {
                let (act, input, needs) = (Arc::clone(&act), input.clone(), needs.to_vec());
                let (kit, step, call) = at.clone();
                kit.call(step, call, move || act(cx.clone(), &input, &needs))
            });
            let undo = code.undo.clone().map(|undo| {
                let at = named("undo");
                let hooked: Arc<Undo> = Arc::new(move |cx, input, own| {
                    let (undo, input, own) = (Arc::clone(&undo), input.clone(), own.cloned());
                    let (kit, step, call) = at.clone();
                    kit.call(step, call, move || undo(cx.clone(), &input, own.as_ref()))
                });
                hooked
            });
            let probe = code.probe.clone().map(|probe| {
                let at = named("probe");
                let hooked: Arc<Probe> = Arc::new(move |cx, input| {
                    let (probe, input) = (Arc::clone(&probe), input.clone());
                    let (kit, step, call) = at.clone();
                    kit.call(step, call, move || probe(cx.clone(), &input))
                });
                hooked
            });
            Code { needs: code.needs.clone(), act: hooked, undo, probe }
        });
        let code = code.collect();
        Self { definition: Arc::new(Definition { graph, code }), _input: PhantomData }
    }
}

struct Parts<In> {
    name: String,
    version: u32,
    /// Tells the steps of this definition from those of others.
    definer: u64,
    nodes: Vec<Node>,
    code: Vec<Code>,
    foreign: Option<String>,
    _input: PhantomData<fn(In)>,
}

impl<In> Parts<In> {
    fn add<Out>(&mut self, step: Step<In, Out>, kind: Kind) -> StepRef<Out> {
        let own = self.nodes.len().min(MAX_STEPS) as StepId;
        let mut after = Vec::new();
        for (id, definer) in step.needs.iter().chain(&step.after) {
            if *definer != self.definer {
                self.foreign = self.foreign.take().or_else(|| Some(step.name.clone()));
            } else if !after.contains(id) {
                after.push(*id);
            }
        }
        self.nodes.push(Node {
            name: step.name.into(),
            kind,
            after: after.into(),
            retry: step.retry,
            undo_retry: step.undo_retry,
            timeout: step.timeout,
            has_probe: step.probe.is_some(),
        });
        self.code.push(Code {
            needs: step.needs.iter().map(|(id, _)| *id).collect(),
            act: step.act,
            undo: step.undo,
            probe: step.probe,
        });
        StepRef { id: own, definer: self.definer, _output: PhantomData }
    }

    fn build(self) -> Result<Saga<In>, DefinitionError> {
        if let Some(step) = self.foreign {
            return Err(DefinitionError::Foreign { step });
        }
        let graph = Arc::new(Graph::new(&self.name, self.version, self.nodes)?);
        let definition = Definition { graph, code: self.code.into() };
        Ok(Saga { definition: Arc::new(definition), _input: PhantomData })
    }
}

/// A definition before its pivot. Steps begin as soon as those that they need are done.
#[must_use = "a definition does nothing until it is built"]
pub struct Definer<In>(Parts<In>);

impl<In> Definer<In> {
    /// Adds a step that is undone when the saga fails.
    pub fn step<Out>(&mut self, step: Compensatable<In, Out>) -> StepRef<Out> {
        self.0.add(step.0, Kind::Compensatable { has_undo: true })
    }

    /// Adds a step without an effect, such as a question: there is nothing to undo.
    pub fn read<Out>(&mut self, step: Step<In, Out>) -> StepRef<Out> {
        self.0.add(step, Kind::Compensatable { has_undo: false })
    }

    /// Adds the point of no return: it begins when all steps before it are done, and the saga is
    /// not undone once it has run.
    pub fn pivot<Out>(mut self, step: Step<In, Out>) -> (WithPivot<In>, StepRef<Out>) {
        let pivot = self.0.add(step, Kind::Pivot);
        (WithPivot(self.0), pivot)
    }

    /// Checks the definition.
    ///
    /// # Errors
    /// [`DefinitionError`].
    pub fn build(self) -> Result<Saga<In>, DefinitionError> {
        self.0.build()
    }
}

/// A definition behind its pivot: its steps have no undo.
///
/// ```compile_fail
/// # use voussoir_txn::{Saga, Step, StepError};
/// let pay = Step::new("pay", (), |_, _: u64, ()| async { Ok::<(), StepError>(()) });
/// let mail = Step::new("mail", (), |_, _: u64, ()| async { Ok::<(), StepError>(()) });
/// let (mut saga, _) = Saga::<u64>::define("order", 1).pivot(pay);
/// saga.then(mail.undo(|_, _, _| async { Ok(()) })); // what is behind the pivot stays done
/// ```
#[must_use = "a definition does nothing until it is built"]
pub struct WithPivot<In>(Parts<In>);

impl<In> WithPivot<In> {
    /// Adds a step behind the pivot, which is tried again until it succeeds.
    pub fn then<Out>(&mut self, step: Step<In, Out>) -> StepRef<Out> {
        self.0.add(step, Kind::Retriable)
    }

    /// Checks the definition.
    ///
    /// # Errors
    /// [`DefinitionError`].
    pub fn build(self) -> Result<Saga<In>, DefinitionError> {
        self.0.build()
    }
}

impl<In> fmt::Debug for Definer<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Definer").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl<In> fmt::Debug for WithPivot<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithPivot").field("name", &self.0.name).finish_non_exhaustive()
    }
}
