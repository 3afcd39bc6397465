//! The labels of some images, as the loader gives them and as a device takes them.
//!
//! A device holds all that the loss is told of a micro-batch in one row of 32-bit words: the labels [N]; of mixed images
//! the second labels [N] and the first ones' shares [N]; the weights of the classes [classes], if they have any. So a
//! batch goes to a device in one piece, whatever its labels say.

/// Which words there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabelForm {
    pub mixed: bool,
    pub weighted: bool,
}

impl LabelForm {
    /// Labels alone.
    pub const PLAIN: LabelForm = LabelForm { mixed: false, weighted: false };

    /// The number of words.
    pub fn words(self, images: usize, classes: usize) -> usize {
        images * if self.mixed { 3 } else { 1 } + if self.weighted { classes } else { 0 }
    }

    /// What the words say.
    ///
    /// # Panics
    /// If there are fewer than [`LabelForm::words`].
    pub fn labels(self, words: &[u32], images: usize) -> Labels<'_> {
        let (first, mut rest) = words.split_at(images);
        let mixed = self.mixed.then(|| {
            let (second, after) = rest.split_at(images);
            let (shares, after) = after.split_at(images);
            rest = after;
            Mixed { second, shares: bytemuck::cast_slice(shares) }
        });
        let class_weights = self.weighted.then(|| bytemuck::cast_slice(rest));
        Labels { first, mixed, class_weights }
    }
}

/// The labels of some images.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Labels<'a> {
    /// [N]. Of a mixed image that of the larger part.
    pub first: &'a [u32],
    pub mixed: Option<Mixed<'a>>,
    /// [classes], of which the mean over the training images is 1.
    pub class_weights: Option<&'a [f32]>,
}

/// What mixed images have beside a label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixed<'a> {
    /// [N].
    pub second: &'a [u32],
    /// The first label's shares [N]; 1 is an image that is not mixed.
    pub shares: &'a [f32],
}

impl<'a> Labels<'a> {
    /// The words in their order.
    pub fn pieces(&self) -> [&'a [u32]; 4] {
        let Labels { first, mixed, class_weights } = *self;
        let (second, shares) = mixed.map_or((&[][..], &[][..]), |mixed| (mixed.second, mixed.shares));
        let weights = class_weights.unwrap_or_default();
        [first, second, bytemuck::cast_slice(shares), bytemuck::cast_slice(weights)]
    }

    /// The number of words.
    pub fn words(&self) -> usize {
        self.pieces().iter().map(|piece| piece.len()).sum()
    }

    /// Writes the words.
    ///
    /// # Panics
    /// If there is room for another number of words: another [`LabelForm`] was planned.
    pub fn write(&self, to: &mut [u32]) {
        let mut rest = to;
        for piece in self.pieces() {
            let (own, after) = rest.split_at_mut(piece.len());
            own.copy_from_slice(piece);
            rest = after;
        }
        assert!(rest.is_empty(), "labels of another form");
    }
}

impl<'a> From<&'a [u32]> for Labels<'a> {
    fn from(first: &'a [u32]) -> Labels<'a> {
        Labels { first, ..Labels::default() }
    }
}

impl<'a> From<&'a Vec<u32>> for Labels<'a> {
    fn from(first: &'a Vec<u32>) -> Labels<'a> {
        first.as_slice().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_as_labels() {
        let mixed = Mixed { second: &[4, 5], shares: &[0.75, 1.0] };
        let weights = [0.5, 1.0, 1.5];
        for (mixed, class_weights) in
            [(None, None), (Some(mixed), None), (None, Some(&weights[..])), (Some(mixed), Some(&weights))]
        {
            let labels = Labels { first: &[1, 2], mixed, class_weights };
            let form = LabelForm { mixed: mixed.is_some(), weighted: class_weights.is_some() };
            let mut words = vec![0; labels.words()];
            labels.write(&mut words);
            assert_eq!(words.len(), form.words(2, 3));
            assert_eq!(form.labels(&words, 2), labels);
        }
    }
}
