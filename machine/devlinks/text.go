package devlinks

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// plain are the characters that stay what they are in a name, besides letters and
// digits.
const plain = "#+-.:=@_"

func isPlain(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || strings.IndexByte(plain, c) >= 0
}

// Encode returns text of a medium, a label as it is, as a name of a file: what could
// have a meaning becomes \xNN, with the hexadecimal number of the byte.
func Encode(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case n > 1 && r != utf8.RuneError:
			b.WriteString(text[:n])
		case isPlain(text[0]):
			b.WriteByte(text[0])
		default:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		}
		text = text[n:]
	}
	return b.String()
}

// replace returns what a device says of itself, its model for example, as a part of a
// name: white space becomes one underscore, and so does each byte that could have a
// meaning.
func replace(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || '\t' <= r && r <= '\r' }), "_")
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case n > 1 && r != utf8.RuneError || isPlain(text[0]):
			b.WriteString(text[:n])
		default:
			b.WriteByte('_')
		}
		text = text[n:]
	}
	return b.String()
}
