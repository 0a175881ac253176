//! What the dependency does.

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Good,
    /// An answer that is neither a success nor a failure: a 404.
    Final,
    Fail,
    Panic,
}

/// One attempt: its end, and after how many milliseconds; `None` hangs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) millis: Option<u64>,
    pub(crate) kind: Kind,
}

const fn after(millis: u64, kind: Kind) -> Step {
    Step { millis: Some(millis), kind }
}

const HANGS: Step = Step { millis: None, kind: Kind::Good };

/// A dependency for one call.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) name: &'static str,
    /// The first attempt, that of each retry, and hedges.
    first: Step,
    retried: Step,
    hedged: Step,
    /// The caller's deadline, in milliseconds.
    pub(crate) deadline: Option<u64>,
    pub(crate) once: bool,
    /// Whether the breaker rejects.
    pub(crate) is_rejected: bool,
}

impl Script {
    pub(crate) fn step(&self, number: u32, hedge: u32) -> Step {
        match (number, hedge) {
            (1, 0) => self.first,
            (_, 0) => self.retried,
            _ => self.hedged,
        }
    }

    /// Whether some attempt never ends by itself, and no deadline ends it.
    pub(crate) fn hangs(&self) -> bool {
        let steps = [self.first, self.retried, self.hedged];
        self.deadline.is_none() && steps.iter().any(|step| step.millis.is_none())
    }
}

const fn script(name: &'static str, first: Step, retried: Step, hedged: Step) -> Script {
    Script { name, first, retried, hedged, deadline: None, once: false, is_rejected: false }
}

const fn always(name: &'static str, step: Step) -> Script {
    script(name, step, step, step)
}

const GOOD: Step = after(11, Kind::Good);
const FAIL: Step = after(11, Kind::Fail);

/// Times are chosen so that no two things happen in the same millisecond.
pub(crate) const SCRIPTS: &[Script] = &[
    always("good", GOOD),
    always("slow", after(127, Kind::Good)),
    always("hanging", HANGS),
    always("failing", FAIL),
    always("failing slowly", after(97, Kind::Fail)),
    always("panicking", after(11, Kind::Panic)),
    always("panicking slowly", after(97, Kind::Panic)),
    always("final", after(11, Kind::Final)),
    script("final, hedge hangs", after(83, Kind::Final), after(83, Kind::Final), HANGS),
    script("final hedge, first hangs", HANGS, HANGS, after(17, Kind::Final)),
    script("hung first", HANGS, HANGS, GOOD),
    script("hung first, failing hedge", HANGS, GOOD, FAIL),
    script("good at the second attempt", FAIL, GOOD, GOOD),
    script("failing, then hanging", FAIL, HANGS, FAIL),
    Script { deadline: Some(3), ..always("good, deadline before", GOOD) },
    Script { deadline: Some(67), ..always("hanging, short deadline", HANGS) },
    Script { deadline: Some(157), ..always("hanging, deadline when slow", HANGS) },
    Script { deadline: Some(29), ..always("failing, deadline in a retry", FAIL) },
    Script { deadline: Some(71), ..script("hung first, deadline in a hedge", HANGS, HANGS, GOOD) },
    Script { once: true, ..always("failing, once", FAIL) },
    Script { once: true, deadline: Some(167), ..always("slow, once", after(127, Kind::Good)) },
    Script { is_rejected: true, ..always("rejected", GOOD) },
];
