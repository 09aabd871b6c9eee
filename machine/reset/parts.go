package reset

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Parts are what is to be erased.
type Parts struct{ State, Ephemeral bool }

// ErrParts is wrapped by Parse's errors.
var ErrParts = errors.New("invalid request to reset")

// Parse reads words: "ephemeral", "state" and "all", with commas or white space
// between them. There must be one at least.
func Parse(s string) (Parts, error) {
	var p Parts
	for _, word := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }) {
		switch word {
		case "ephemeral":
			p.Ephemeral = true
		case "state":
			p.State = true
		case "all":
			p = Parts{true, true}
		default:
			return Parts{}, fmt.Errorf("%w %q: want ephemeral, state or all", ErrParts, shorten(s))
		}
	}
	if p == (Parts{}) {
		return p, fmt.Errorf("%w %q: want ephemeral, state or all", ErrParts, shorten(s))
	}
	return p, nil
}

// shorten bounds what an error quotes.
func shorten(s string) string {
	const most = 40
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// String returns what Parse reads, or "" for nothing.
func (p Parts) String() string {
	switch p {
	case Parts{true, true}:
		return "all"
	case Parts{State: true}:
		return "state"
	case Parts{Ephemeral: true}:
		return "ephemeral"
	}
	return ""
}

// Union returns what p or q has.
func (p Parts) Union(q Parts) Parts {
	return Parts{p.State || q.State, p.Ephemeral || q.Ephemeral}
}
