//! Colour on a terminal, from the sixteen that every theme keeps readable.

/// Wraps text in ANSI attributes, or leaves it alone.
#[derive(Clone, Copy)]
pub(super) struct Paint {
    pub(super) on: bool,
}

impl Paint {
    pub(super) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub(super) fn number(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    fn wrap(self, attribute: &str, text: &str) -> String {
        if self.on { format!("\x1b[{attribute}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
