//! Active checks: how many results in a row change the health of an endpoint.

/// Results in a row that change the health.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CheckThresholds {
    /// Passed checks that make an unhealthy endpoint healthy. At least 1.
    pub(crate) rise: u32,
    /// Failed checks that make a healthy endpoint unhealthy. At least 1.
    pub(crate) fall: u32,
}

/// What the checks so far say about one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CheckState {
    /// No check has ended yet.
    #[default]
    Unknown,
    /// Healthy; the last `failed` checks failed. Invariant: failed < fall.
    Healthy { failed: u32 },
    /// Unhealthy; the last `passed` checks passed. Invariant: passed < rise.
    Unhealthy { passed: u32 },
}

impl CheckState {
    /// Records one result. The first result decides alone; later ones need `rise` or `fall`.
    pub(crate) fn record(self, passed: bool, thresholds: CheckThresholds) -> Self {
        match (self, passed) {
            (Self::Unknown | Self::Healthy { .. }, true) => Self::Healthy { failed: 0 },
            (Self::Unknown | Self::Unhealthy { .. }, false) => Self::Unhealthy { passed: 0 },
            (Self::Healthy { failed }, false) if failed + 1 >= thresholds.fall => {
                Self::Unhealthy { passed: 0 }
            }
            (Self::Healthy { failed }, false) => Self::Healthy { failed: failed + 1 },
            (Self::Unhealthy { passed }, true) if passed + 1 >= thresholds.rise => {
                Self::Healthy { failed: 0 }
            }
            (Self::Unhealthy { passed }, true) => Self::Unhealthy { passed: passed + 1 },
        }
    }

    /// False before the first result: an endpoint gets no traffic until a check has passed.
    pub(crate) fn is_healthy(self) -> bool {
        matches!(self, Self::Healthy { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_result_decides_and_later_ones_need_rise_or_fall() {
        let thresholds = CheckThresholds { rise: 2, fall: 3 };
        let run = |results: &[bool]| {
            let record = |state: CheckState, &passed: &bool| state.record(passed, thresholds);
            results.iter().fold(CheckState::Unknown, record).is_healthy()
        };
        assert!(run(&[true]) && !run(&[false]));
        assert!(run(&[true, false, false]) && !run(&[true, false, false, false]));
        assert!(run(&[true, false, false, true, false, false]));
        assert!(!run(&[false, true]) && run(&[false, true, true]));
        assert!(!run(&[false, true, false, true]));
    }
}
