//! The marker segments of a JPEG file, read before any decoder sees it.
//!
//! A decoder may read an unusual file wrongly without a word. [`Layout`] tells from the headers alone what kind of file
//! it is, so that the choice of the decoder, and of its colours, does not depend on what a decoder notices.

/// A marker and what belongs to it.
pub(super) struct Segment<'a> {
    pub marker: u8,
    /// Without the two bytes of its length.
    pub body: &'a [u8],
    /// Where the next segment, or the data of a scan, starts.
    pub end: usize,
}

pub(super) const START_OF_SCAN: u8 = 0xda;
pub(super) const END_OF_IMAGE: u8 = 0xd9;

/// The first segment at or after `at`; what lies before it is skipped, as all decoders do. `None` if the file ends.
pub(super) fn next_segment(bytes: &[u8], mut at: usize) -> Option<Segment<'_>> {
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        let marker = *bytes.get(at + 1)?;
        match marker {
            0xff => at += 1, // a fill byte
            0x00 => at += 2, // no marker but a 0xff in the data of a scan
            0x01 | 0xd0..=0xd9 => return Some(Segment { marker, body: &[], end: at + 2 }),
            _ => {
                let length = bytes.get(at + 2..at + 4)?;
                let end = at + 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
                return Some(Segment { marker, body: bytes.get(at + 4..end)?, end });
            }
        }
    }
}

/// A component of the frame: a colour's plane, of which each MCU has `across` times `down` blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Component {
    pub id: u8,
    pub across: u8,
    pub down: u8,
    /// Number of its quantisation table.
    pub table: u8,
}

/// The frame header (SOF).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub progressive: bool,
    /// Coded by Huffman's codes in 8-bit samples, in one frame: what the decoders read.
    pub usual: bool,
    pub width: u16,
    pub height: u16,
    pub components: Vec<Component>,
}

impl Frame {
    /// `None` if the segment is no frame header or makes no sense.
    pub fn read(segment: &Segment) -> Option<Frame> {
        if !matches!(segment.marker, 0xc0..=0xcf) || matches!(segment.marker, 0xc4 | 0xc8 | 0xcc) {
            return None;
        }
        let body = segment.body;
        let (head, rest) = body.split_at_checked(6)?;
        let components: Vec<_> = rest
            .chunks_exact(3)
            .take(usize::from(head[5]))
            .map(|c| Component { id: c[0], across: c[1] >> 4, down: c[1] & 15, table: c[2] })
            .collect();
        let sampling = 1..=4;
        let sound = components.len() == usize::from(head[5])
            && (1..=4).contains(&components.len())
            && components.iter().all(|c| sampling.contains(&c.across) && sampling.contains(&c.down));
        sound.then(|| Frame {
            progressive: segment.marker == 0xc2,
            usual: matches!(segment.marker, 0xc0..=0xc2) && head[0] == 8,
            height: u16::from_be_bytes([head[1], head[2]]),
            width: u16::from_be_bytes([head[3], head[4]]),
            components,
        })
    }

    /// The largest sampling factors.
    pub fn sampling(&self) -> (usize, usize) {
        let largest =
            |factor: fn(&Component) -> u8| self.components.iter().map(factor).max().unwrap_or(1).into();
        (largest(|c| c.across), largest(|c| c.down))
    }
}

/// What a JPEG's components mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

/// What the segments before the data of the first scan say.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    pub frame: Frame,
    /// The TIFF structure of an EXIF segment.
    pub exif: Option<&'a [u8]>,
    /// Components of the first scan.
    pub first_scan: usize,
    jfif: bool,
    /// The colour transform of Adobe's segment.
    adobe: Option<u8>,
}

impl Layout<'_> {
    pub fn read(bytes: &[u8]) -> Result<Layout<'_>, String> {
        let (mut frame, mut exif, mut jfif, mut adobe, mut at) = (None, None, false, None, 2);
        loop {
            let segment = next_segment(bytes, at).ok_or("truncated JPEG (it has no image data)")?;
            at = segment.end;
            match segment.marker {
                0xe0 => jfif |= segment.body.starts_with(b"JFIF\0"),
                0xe1 => exif = exif.or(segment.body.strip_prefix(b"Exif\0\0")),
                0xee if segment.body.starts_with(b"Adobe") => adobe = segment.body.get(11).copied().or(adobe),
                START_OF_SCAN => {
                    let frame = frame.ok_or("damaged JPEG: no frame header before its image data")?;
                    let first_scan = segment.body.first().map_or(0, |&count| count.into());
                    return Ok(Layout { frame, exif, first_scan, jfif, adobe });
                }
                END_OF_IMAGE => return Err("damaged JPEG: no image data before its end".into()),
                _ => frame = frame.or(Frame::read(&segment)),
            }
        }
    }

    /// Whether the components of a sequential file lie in several scans.
    pub fn in_several_scans(&self) -> bool {
        !self.frame.progressive && self.first_scan < self.frame.components.len()
    }

    /// Whether the planes of colour are finer than the first one: the reverse of what is usual.
    pub fn has_coarse_first_plane(&self) -> bool {
        let first = self.frame.components[0];
        self.frame.sampling() != (first.across.into(), first.down.into())
    }

    /// What libjpeg takes the colours for: a JFIF segment outdoes Adobe's, and this one the components' names.
    pub fn colours(&self) -> Colours {
        let ids: Vec<u8> = self.frame.components.iter().map(|c| c.id).collect();
        match (ids.len(), self.jfif, self.adobe) {
            (1 | 2, ..) => Colours::Grey,
            (3, true, _) => Colours::YCbCr,
            (3, false, Some(0)) => Colours::Rgb,
            (3, false, None) if ids == *b"RGB" => Colours::Rgb,
            (3, ..) => Colours::YCbCr,
            (_, _, None | Some(0)) => Colours::Cmyk,
            (..) => Colours::Ycck,
        }
    }

    /// Whether Adobe's segment contradicts [`Layout::colours`], or only the components' names tell them. Decoders differ
    /// in such files.
    pub fn has_disputed_colours(&self) -> bool {
        match (self.colours(), self.adobe) {
            (Colours::YCbCr, Some(transform)) => transform != 1,
            (Colours::Rgb, transform) => transform != Some(0),
            _ => false,
        }
    }
}
