//! The definition of a correct prediction. Devices that compute this themselves follow it.

/// The number of other classes whose logit is not below the label's: 0 means correct. Ties count against the network,
/// so a network with equal logits for all classes is never correct by luck, and one with NaN is never correct.
pub fn rank(logits: &[f32], label: u32) -> usize {
    let own = logits.get(label as usize).copied().unwrap_or(f32::NAN);
    if own.is_nan() {
        return logits.len();
    }
    // The negation counts another class's NaN as "not below". It also counts the label itself.
    #[allow(clippy::neg_cmp_op_on_partial_ord)]
    let not_below = logits.iter().filter(|&&other| !(other < own)).count();
    not_below - 1
}
