//! A curve of a few dozen characters.

use leakscope_profile::TimelinePoint;

/// Fewer points than this are no curve.
const FEWEST_POINTS: usize = 4;

/// Heap in use over time as a row of block characters, `width` of them, each as high as the largest value of its
/// share of the time; none if there are too few points. An empty heap is a blank.
pub(crate) fn sparkline(timeline: &[TimelinePoint], width: usize) -> Option<String> {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let points: Vec<_> = timeline.iter().filter(|point| point.seconds.is_finite()).collect();
    let (first, last) = (points.first()?.seconds, points.last()?.seconds);
    let highest = points.iter().map(|point| point.inuse_bytes).max()?;
    if points.len() < FEWEST_POINTS || last <= first || highest == 0 || width == 0 {
        return None;
    }
    let mut columns: Vec<Option<u64>> = vec![None; width];
    for point in points {
        let position = ((point.seconds - first) / (last - first) * width as f64) as usize;
        if let Some(column) = columns.get_mut(position.min(width - 1)) {
            *column = Some(column.unwrap_or(0).max(point.inuse_bytes));
        }
    }
    let mut current = 0;
    let line = columns.into_iter().map(|column| {
        // No point in this stretch: nothing was measured, so the last value stands.
        current = column.unwrap_or(current);
        if current == 0 {
            return ' ';
        }
        let level = (u128::from(current) * 8).div_ceil(u128::from(highest)) as usize;
        LEVELS[level.clamp(1, 8) - 1]
    });
    Some(line.collect())
}

#[cfg(test)]
mod tests {
    use super::sparkline;
    use leakscope_profile::TimelinePoint;

    fn points(values: &[(f64, u64)]) -> Vec<TimelinePoint> {
        let point = |&(seconds, inuse_bytes)| TimelinePoint { seconds, inuse_bytes, ..Default::default() };
        values.iter().map(point).collect()
    }

    #[test]
    fn a_growing_heap_rises_and_gaps_keep_the_last_value() {
        let line = sparkline(&points(&[(0.0, 0), (1.0, 100), (6.0, 400), (8.0, 800)]), 8);
        assert_eq!(line.as_deref(), Some(" ▁▁▁▁▁▄█"));
    }

    #[test]
    fn too_little_to_draw_draws_nothing() {
        assert_eq!(sparkline(&[], 8), None);
        assert_eq!(sparkline(&points(&[(0.0, 1), (1.0, 1), (2.0, 1)]), 8), None);
        assert_eq!(sparkline(&points(&[(1.0, 1); 9]), 8), None);
        assert_eq!(sparkline(&points(&[(0.0, 0), (1.0, 0), (2.0, 0), (3.0, 0)]), 8), None);
        assert_eq!(sparkline(&points(&[(f64::NAN, 1), (f64::INFINITY, 2), (0.0, 1), (1.0, 1)]), 8), None);
    }
}
