package module

import (
	"fmt"
	"strconv"
	"strings"
)

// Exports and Imports are most of what a base stores of a kernel (200,000
// imports for a distribution's). As JSON each list is one string with an entry
// for each symbol, separated by spaces: eight hexadecimal digits of CRC, a flag
// and the name, for exports of a name space followed by '@' and that.
//
//	"92997ed8:_printk 1ac5d3cb?maybe"            Imports; '?' is weak
//	"7d0e8c1f!crc32c 0b1a2f00:a@CRYPTO_INTERNAL" Exports; '!' is GPL-only

// Exports are the symbols that a module exports, in its symbol table's order.
type Exports []Export

// Imports are the symbols that a module needs: the undefined symbols in its
// symbol table's order, then what else it has a CRC of (module_layout).
type Imports []Import

// MarshalText implements encoding.TextMarshaler.
func (list Exports) MarshalText() ([]byte, error) {
	var b []byte
	for _, e := range list {
		name := e.Name
		if e.Namespace != "" {
			name += "@" + e.Namespace
		}
		b = appendSymbol(b, e.CRC, e.GPL, '!', name)
	}
	return b, nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (list *Exports) UnmarshalText(text []byte) error {
	return eachSymbol(text, '!', func(n int) { *list = make(Exports, 0, n) },
		func(crc uint32, gpl bool, name string) {
			name, namespace, _ := strings.Cut(name, "@")
			*list = append(*list, Export{name, crc, gpl, namespace})
		})
}

// MarshalText implements encoding.TextMarshaler.
func (list Imports) MarshalText() ([]byte, error) {
	var b []byte
	for _, m := range list {
		b = appendSymbol(b, m.CRC, m.Weak, '?', m.Name)
	}
	return b, nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (list *Imports) UnmarshalText(text []byte) error {
	return eachSymbol(text, '?', func(n int) { *list = make(Imports, 0, n) },
		func(crc uint32, weak bool, name string) {
			*list = append(*list, Import{name, crc, weak})
		})
}

func appendSymbol(b []byte, crc uint32, set bool, flag byte, name string) []byte {
	const digits = "0123456789abcdef"
	if len(b) > 0 {
		b = append(b, ' ')
	}
	for shift := 28; shift >= 0; shift -= 4 {
		b = append(b, digits[crc>>shift&15])
	}
	if !set {
		flag = ':'
	}
	return append(append(b, flag), name...)
}

// eachSymbol calls add for each entry of an encoded list, after size with their
// number. The names share one copy of text.
func eachSymbol(text []byte, flag byte, size func(n int), add func(crc uint32, set bool, name string)) error {
	s := string(text)
	if s == "" {
		return nil
	}
	size(strings.Count(s, " ") + 1)
	for s != "" {
		var entry string
		entry, s, _ = strings.Cut(s, " ")
		if len(entry) < 10 || entry[8] != ':' && entry[8] != flag {
			return fmt.Errorf("symbol %q: wanted eight digits of CRC, ':' or '%c', and a name", entry, flag)
		}
		crc, err := strconv.ParseUint(entry[:8], 16, 32)
		if err != nil {
			return fmt.Errorf("symbol %q: CRC: %w", entry, err)
		}
		add(uint32(crc), entry[8] == flag, entry[9:])
	}
	return nil
}
