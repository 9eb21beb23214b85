//! What was measured, as a table.

use crate::Fallible;

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    /// What the numbers count.
    unit: &'static str,
    ours: f64,
    /// The baseline, and ours divided by it.
    beside: Option<(f64, Spread)>,
    reach: Option<Reach>,
}

/// The target of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reach {
    /// The ratio is no less.
    RatioAtLeast(f64),
    /// The ratio is no more.
    RatioAtMost(f64),
    /// Our number is no more.
    AtMost(f64),
    /// Our number is this one.
    Exactly(f64),
}

impl Row {
    /// Both sides, measured in turns.
    pub(crate) fn ratio(what: impl Into<String>, unit: &'static str, pairs: &Pairs) -> Self {
        let side = |of: fn(&(f64, f64)) -> f64| Spread::of(pairs.0.iter().map(of)).median;
        let ratios = Spread::of(pairs.0.iter().map(|(ours, other)| ours / other));
        let beside = Some((side(|pair| pair.1), ratios));
        Self { what: what.into(), unit, ours: side(|pair| pair.0), beside, reach: None }
    }

    pub(crate) fn reach(self, reach: Reach) -> Self {
        Self { reach: Some(reach), ..self }
    }

    fn reached(&self) -> (String, &'static str) {
        let ratio = self.beside.map(|(_, ratios)| ratios.median);
        let (text, reached) = match self.reach {
            None => return (String::new(), ""),
            Some(Reach::RatioAtLeast(least)) => (format!("ratio ≥ {least:.2}"), ratio.map(|ratio| ratio >= least)),
            Some(Reach::RatioAtMost(most)) => (format!("ratio ≤ {most:.2}"), ratio.map(|ratio| ratio <= most)),
            Some(Reach::AtMost(most)) => (format!("≤ {}", number(most)), Some(self.ours <= most)),
            Some(Reach::Exactly(wanted)) => (number(wanted), Some((self.ours - wanted).abs() < f64::EPSILON)),
        };
        (text, if reached == Some(true) { "yes" } else { "NO" })
    }
}

/// Measurements of the two sides, each pair made in one go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pairs(Vec<(f64, f64)>);

impl Pairs {
    /// Measures our side and then the other, so many times; each measurement gives several numbers.
    pub(crate) fn measure<S, const N: usize>(
        times: usize,
        [ours, other]: [S; 2],
        mut measure: impl FnMut(&S) -> Fallible<[f64; N]>,
    ) -> Fallible<[Self; N]> {
        let mut all = std::array::from_fn(|_| Self::default());
        for _ in 0..times {
            for ((pairs, ours), other) in all.iter_mut().zip(measure(&ours)?).zip(measure(&other)?) {
                pairs.0.push((ours, other));
            }
        }
        Ok(all)
    }

    /// The smaller of the two sides' medians.
    pub(crate) fn slower(&self) -> f64 {
        let side = |of: fn(&(f64, f64)) -> f64| Spread::of(self.0.iter().map(of)).median;
        side(|pair| pair.0).min(side(|pair| pair.1))
    }
}

#[derive(Debug, Clone, Copy)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let mut numbers: Vec<f64> = numbers.collect();
        numbers.sort_by(f64::total_cmp);
        let at = |place: usize| numbers.get(place).copied().unwrap_or(f64::NAN);
        let last = numbers.len().saturating_sub(1);
        Self { median: f64::midpoint(at(last / 2), at(last.div_ceil(2))), least: at(0), most: at(last) }
    }
}

/// The table in Markdown.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut text = String::from(
        "| what | unit | credproxy | baseline | ratio (least to most) | target | met |\n\
         | --- | --- | ---: | ---: | ---: | --- | --- |\n",
    );
    for row in rows {
        let (beside, ratio) = match &row.beside {
            Some((other, ratios)) => {
                (number(*other), format!("{:.3} ({:.3} to {:.3})", ratios.median, ratios.least, ratios.most))
            }
            None => (String::new(), String::new()),
        };
        let (reach, reached) = row.reached();
        let line = format!(
            "| {} | {} | {} | {beside} | {ratio} | {reach} | {reached} |\n",
            row.what,
            row.unit,
            number(row.ours)
        );
        text.push_str(&line);
    }
    text
}

/// Three digits that count, or the whole number.
fn number(number: f64) -> String {
    match number.abs() {
        0.0 => "0".to_owned(),
        size if size < 10.0 => format!("{number:.2}"),
        size if size < 100.0 => format!("{number:.1}"),
        _ => {
            let digits = format!("{number:.0}");
            let mut grouped = String::new();
            for (place, digit) in digits.chars().enumerate() {
                if place > 0 && (digits.len() - place).is_multiple_of(3) && !grouped.ends_with('-') {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
    }
}
