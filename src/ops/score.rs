//! How a prediction is judged. Devices that judge by themselves follow this definition.

/// Other classes whose logit is not below the label's: 0 is right. Ties count against the network, so one that says
/// the same of every class is never right by luck, and neither is one that says NaN.
pub fn rank(logits: &[f32], label: u32) -> usize {
    let own = logits.get(label as usize).copied().unwrap_or(f32::NAN);
    if own.is_nan() {
        return logits.len();
    }
    // Written so that another class's NaN is "not below". The label itself is not below itself either.
    #[allow(clippy::neg_cmp_op_on_partial_ord)]
    let not_below = logits.iter().filter(|&&other| !(other < own)).count();
    not_below - 1
}
