//! How an image comes into the network's square.

use crate::data::codec::{Region, whole};

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rectangle {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

impl Rectangle {
    pub fn all((width, height): (u32, u32)) -> Rectangle {
        Rectangle { left: 0, top: 0, width, height }
    }

    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }
}

/// How an image is cropped, resized, padded and mirrored; CPU and GPU both follow this. A rectangle is cut out, a
/// region of it is resized, the result is placed in a black square, and the square is mirrored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// What resizing sees; pixels outside have no influence.
    pub cut: Rectangle,
    /// The part of `cut` that is resized.
    pub region: Region,
    /// Width and height after resizing.
    pub size: (u32, u32),
    /// Position of its upper left corner, possibly outside the square.
    pub place: (i64, i64),
    pub mirrored: bool,
}

impl Geometry {
    /// A region of a rectangle that fills the square.
    pub fn filling(cut: Rectangle, region: Region, side: u32) -> Geometry {
        Geometry { cut, region, size: (side, side), place: (0, 0), mirrored: false }
    }

    /// All of an image, resized to `size` and moved by `shift` from the middle of the square.
    pub fn padded(image: (u32, u32), size: (u32, u32), shift: (i64, i64), side: u32) -> Geometry {
        let centre = |length| i64::from((side - length) / 2);
        Geometry {
            cut: Rectangle::all(image),
            region: whole(image),
            size,
            place: (centre(size.0) + shift.0, centre(size.1) + shift.1),
            mirrored: false,
        }
    }

    /// An image of this side that fills the network's square.
    pub fn square(side: u32) -> Geometry {
        let size = (side, side);
        Geometry::filling(Rectangle::all(size), whole(size), side)
    }

    /// Whether the result covers exactly a square of this side.
    pub fn fills(&self, side: u32) -> bool {
        self.size == (side, side) && self.place == (0, 0)
    }

    /// Whether pixels are moved but not resampled.
    pub fn copies(&self) -> bool {
        self.size == self.cut.size() && self.region == whole(self.size)
    }
}
