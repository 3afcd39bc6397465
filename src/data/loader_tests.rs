//! The threads and their turns, with makers that fail on purpose.

use super::*;

fn loader(steps: u64, window: u64, makers: Vec<Make>) -> Loader {
    loader_with(steps, window, makers, None)
}

fn loader_with(steps: u64, window: u64, makers: Vec<Make>, memory: Option<HostAllocator>) -> Loader {
    let sampler = Sampler::fixed(steps as usize, 1);
    Loader::with_makers(sampler, Box::new(|_| ()), 0..steps, window, makers, memory).unwrap()
}

/// A maker that writes its place as the label, and panics at one place.
fn label_maker(panic_at: Option<u32>) -> Make {
    Box::new(move |places, batch| {
        let index = places[0].index;
        if panic_at == Some(index) {
            panic!("on purpose");
        }
        batch.labels = vec![index];
        Ok(())
    })
}

#[test]
fn batches_come_in_order_for_any_number_of_threads() {
    for (threads, window) in [(1, 1), (1, 4), (3, 3), (8, 9)] {
        let mut loader = loader(100, window, (0..threads).map(|_| label_maker(None)).collect());
        for step in 0..100 {
            let batch = loader.next().unwrap().unwrap();
            assert_eq!((batch.step, batch.labels.as_slice()), (step, &[step as u32][..]));
            loader.recycle(batch);
        }
        assert!(loader.next().unwrap().is_none());
        assert!(loader.next().unwrap().is_none());
    }
}

#[test]
fn panic_is_an_error_in_its_turn() {
    let mut loader = loader(50, 4, (0..4).map(|_| label_maker(Some(20))).collect());
    for _ in 0..20 {
        loader.next().unwrap().unwrap();
    }
    assert!(loader.next().unwrap_err().to_string().contains("panicked"));
    // Afterwards, this must not look like the end of the data.
    assert!(loader.next().unwrap_err().to_string().contains("stopped"));
}

#[test]
fn drop_stops_threads_that_wait() {
    let mut loader = loader(1000, 2, (0..4).map(|_| label_maker(None)).collect());
    loader.next().unwrap().unwrap();
    drop(loader); // joins the threads, and would hang if they waited on
}

#[test]
fn batches_are_made_ahead_up_to_the_window() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let made = Arc::new(AtomicU64::new(0));
    let makers = (0..2).map(|_| {
        let made = made.clone();
        Box::new(move |_: &[Place], _: &mut Batch| {
            made.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }) as Make
    });
    let mut loader = loader(1000, 3, makers.collect());
    for out in 1..=200 {
        loader.next().unwrap().unwrap();
        assert!(made.load(Ordering::SeqCst) <= out + 3);
    }
}

/// Batches of one byte, with the memory that `take` gives: how many of the first 100 lie in it.
fn held_of_a_hundred(take: impl Fn(usize) -> Option<HostBytes> + Send + Sync + 'static) -> usize {
    let maker = |_| -> Make {
        Box::new(|places, batch| {
            batch.pixels = vec![places[0].index as u8];
            batch.used = vec![1];
            Ok(())
        })
    };
    let makers = (0..3).map(maker).collect();
    let mut loader = loader_with(100, 3, makers, Some(HostAllocator::new(take)));
    let (mut held, mut in_flight) = (0, VecDeque::new());
    for step in 0..100 {
        let batch = loader.next().unwrap().unwrap();
        let bytes = batch.held.as_ref().map_or(&batch.pixels[..], HostBytes::bytes);
        assert_eq!((batch.step, bytes), (step, &[step as u8][..]));
        held += usize::from(batch.held.is_some());
        in_flight.push_back(batch);
        if in_flight.len() == 2 {
            loader.recycle(in_flight.pop_front().unwrap());
        }
    }
    held
}

#[test]
fn batches_lie_in_a_few_pieces_of_the_device_s_memory() {
    let taken = Arc::new(Mutex::new(0));
    let count = taken.clone();
    let held = held_of_a_hundred(move |bytes| {
        *count.lock().unwrap() += 1;
        Some(HostBytes::new(vec![0; bytes]))
    });
    assert_eq!(held, 100);
    assert!(*taken.lock().unwrap() <= HELD);
}

/// Where memory cannot be pinned, or no more of it, no thread may wait for a piece that never comes.
#[test]
fn batches_stay_where_they_are_made_if_there_is_no_such_memory() {
    assert_eq!(held_of_a_hundred(|_| None), 0);
    let left = Mutex::new(2);
    let few = held_of_a_hundred(move |bytes| {
        let mut left = left.lock().unwrap();
        *left -= i32::from(*left > 0);
        (*left > 0).then(|| HostBytes::new(vec![0; bytes]))
    });
    assert!(few < 100);
}
