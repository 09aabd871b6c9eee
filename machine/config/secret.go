package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Placeholder is what is shown of a Secret.
const Placeholder = "(secret)"

// A Secret is text that is not shown: whatever prints, logs or marshals it, or
// what it is part of, gets the Placeholder. Only Encode and Reveal have the text.
type Secret struct {
	text *string // a pointer, as fmt calls no methods of what is in unexported fields
}

// NewSecret returns text as a Secret.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

// Reveal returns the text.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether the text is empty.
func (s Secret) IsZero() bool { return s.text == nil }

func (s Secret) shown() string {
	if s.IsZero() {
		return ""
	}
	return Placeholder
}

// String implements fmt.Stringer.
func (s Secret) String() string { return s.shown() }

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return fmt.Sprintf("config.Secret(%q)", s.shown()) }

// Format implements fmt.Formatter for all verbs.
func (s Secret) Format(f fmt.State, verb rune) {
	if verb == 'v' && f.Flag('#') {
		io.WriteString(f, s.GoString())
		return
	}
	io.WriteString(f, s.shown())
}

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.shown()) }

// MarshalText implements encoding.TextMarshaler, for JSON, YAML and others.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.shown()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It refuses the Placeholder:
// a configuration that was shown is not one to apply.
func (s *Secret) UnmarshalText(text []byte) error {
	if string(text) == Placeholder {
		return errors.New("the placeholder of a secret, want the secret itself")
	}
	*s = NewSecret(string(text))
	return nil
}
