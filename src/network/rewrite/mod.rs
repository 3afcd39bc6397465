//! Rewrites: a list of recorded passes → another that computes the same, faster or in less memory.
//!
//! A rewrite is a function of the list and of facts about the device. It runs nothing, so it is tested without a
//! device. One more is a file here and one call where an itinerary is made: in
//! [`Network::itinerary`](super::Network::itinerary), or for evaluation alone in
//! [`Inference::new`](super::Inference::new).

pub mod apply;
pub mod fold;
pub mod recompute;
