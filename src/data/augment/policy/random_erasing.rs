//! Random erasing (Zhong et al. 2017): a rectangle gets the mean colour. Its area is 2–33 % of the square's and its ratio
//! between 0.3 and 1/0.3, uniform in its logarithm, in ten tries, as in torchvision and timm.

use super::Look;
use crate::data::augment::edit::Edit;
use crate::random::{Purpose, below, unit};

const AREA: [f64; 2] = [0.02, 1.0 / 3.0];
const LEAST_RATIO: f64 = 0.3;
const TRIES: u32 = 10;

pub fn edits(look: Look, side: u32, edits: &mut Vec<Edit>) {
    if f64::from(unit(look.draw(Purpose::Erase, 0)[0])) >= look.policy.random_erasing {
        return;
    }
    let most = -LEAST_RATIO.ln();
    for attempt in 1..=TRIES {
        let bits = look.draw(Purpose::Erase, attempt);
        let area = f64::from(side * side) * (AREA[0] + (AREA[1] - AREA[0]) * f64::from(unit(bits[0])));
        let ratio = (most * (2.0 * f64::from(unit(bits[1])) - 1.0)).exp();
        let height = (area * ratio).sqrt().round() as u32;
        let width = (area / ratio).sqrt().round() as u32;
        if (1..side).contains(&width) && (1..side).contains(&height) {
            let (left, top) = (below(bits[2], side - width + 1), below(bits[3], side - height + 1));
            edits.push(Edit::Erase { left, top, width, height, fill: look.policy.fill });
            return;
        }
    }
}
