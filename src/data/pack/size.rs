//! The size at which an image is stored, and what that will take.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{PackEncoding, PackOptions};
use crate::data::codec::{dimensions, fit};

/// A header is looked for in this many bytes: a JPEG's size may come after a thumbnail of up to 64 KiB and a colour
/// profile.
pub const HEADER: u64 = 256 << 10;

/// The bytes of a file in which a header is looked for.
pub fn start(path: &Path) -> Option<Vec<u8>> {
    let mut start = Vec::new();
    let file = File::open(path).ok()?;
    file.take(HEADER).read_to_end(&mut start).ok()?;
    Some(start)
}

impl PackOptions {
    /// The longer side to which an image of this size is scaled down, if it is.
    pub(crate) fn reduced(&self, width: u32, height: u32) -> Option<u32> {
        let (shorter, longer) = (width.min(height), width.max(height));
        let by_longer = self.max_side.filter(|&limit| longer > limit);
        // Rounded to whole pixels, the longer side still gives this shorter one.
        let scaled = |limit: u32| (f64::from(longer) * f64::from(limit) / f64::from(shorter)).round() as u32;
        let by_shorter = self.resize_shorter.filter(|&limit| shorter > limit).map(scaled);
        [by_longer, by_shorter].into_iter().flatten().min()
    }

    /// Estimates an image's stored length: that of the file for a JPEG that is kept, else of its pixels by the size in
    /// its header; 0 where that cannot be read.
    pub(super) fn estimate(&self, is_jpeg: bool, bytes: u64, start: impl FnOnce() -> Option<Vec<u8>>) -> u64 {
        let stays = match self.encoding {
            PackEncoding::Raw => false,
            PackEncoding::Auto => is_jpeg,
            PackEncoding::Jpeg => true,
        };
        if stays {
            return bytes;
        }
        let Some((width, height)) = start().and_then(|start| dimensions(&start)) else { return 0 };
        let size = self.reduced(width, height).map(|longest| fit(width, height, longest));
        let (width, height) = size.unwrap_or((width, height));
        u64::from(width) * u64::from(height) * 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reduced_scales_down_only() {
        let longest = PackOptions { max_side: Some(100), ..PackOptions::default() };
        assert_eq!([longest.reduced(200, 50), longest.reduced(100, 90)], [Some(100), None]);
        let shorter = PackOptions { resize_shorter: Some(100), ..PackOptions::default() };
        assert_eq!([shorter.reduced(400, 200), shorter.reduced(400, 100)], [Some(200), None]);
        assert_eq!(PackOptions::default().reduced(9000, 9000), None);
        let both = PackOptions { max_side: Some(150), ..shorter.clone() };
        assert_eq!([both.reduced(400, 200), both.reduced(220, 200)], [Some(150), Some(110)]);
        for (width, height) in
            (101..400).flat_map(|width| (101..400).step_by(7).map(move |high| (width, high)))
        {
            let (w, h) = fit(width, height, shorter.reduced(width, height).unwrap());
            assert_eq!(w.min(h), 100, "{width}x{height}");
        }
    }
}
