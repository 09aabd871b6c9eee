package blockdev

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Selector is an expression over what is known of a disk:
//
//	size >= 10GB && transport == "nvme" && !removable
//	by-id =~ "nvme-Samsung*" || (rotational && size < 1TB)
//	disk.size > 10u * GB && disk.transport == 'nvme'
//
// The fields, and by which other names they are known:
//
//	name         the kernel's: "sda", "nvme0n1"
//	path         of the device node: "/dev/sda"              dev_path
//	size         in bytes
//	sectorsize   logical, in bytes                           sector_size
//	model        as the disk says
//	serial       as the disk says
//	wwn          as the kernel has it: "naa.…", "eui.…"      wwid
//	transport    nvme, sata, sas, scsi, fc, iscsi, usb, mmc, virtio, xen, nbd, rbd, pmem, loop
//	rotational   true or false, as are removable and readonly
//	removable
//	readonly
//	by-id        the names in /dev/disk/by-id                by_id
//	links        the paths in /dev/disk                      symlinks
//	buspath      the way to the disk in sysfs                bus_path, bus-path
//
// A field may be written disk.field. Strings are in single or double quotes,
// without escapes. Numbers may have a fraction and a unit, kB, KB, MB, GB, TB,
// PB (of 1000) or KiB, MiB, GiB, TiB, PiB (of 1024), with or without space or
// '*' in between.
//
//	== !=             for strings, numbers, and true and false
//	< <= > >=         for numbers
//	=~                the whole string matches a pattern in which * is any text and ? one character
//	"text" in field   for by-id and links: one of them is the text
//	field.startsWith("text"), endsWith, contains
//	&& || ! ( )       as in C
//
// by-id and links satisfy ==, =~ and the functions if one of them does; != if
// none is equal.
//
// It is a language of its own, but what people write for Talos, in the Common
// Expression Language, has the same meaning here as far as it is about these
// fields: the library for all of that language would add 8 MB to a program of
// 13 MB, and its errors could not say which fields there are.
type Selector struct {
	text  string
	match func(*Device) bool
}

// Match reports whether the selector is true for d.
func (s *Selector) Match(d *Device) bool { return s.match(d) }

func (s *Selector) String() string { return s.text }

// A SyntaxError says what is wrong with a selector.
type SyntaxError struct {
	Text   string // of the selector
	Column int    // in characters, from 1
	Detail string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("disk selector, column %d: %s\n  %s\n  %s^", e.Column, e.Detail, e.Text, strings.Repeat(" ", e.Column-1))
}

// A field is something that a selector can ask for; one of the functions is
// set.
type field struct {
	names  []string
	text   func(*Device) string
	list   func(*Device) []string
	number func(*Device) int64
	truth  func(*Device) bool
}

func fields() []field {
	return []field{
		{names: []string{"name"}, text: func(d *Device) string { return d.Name }},
		{names: []string{"path", "dev_path"}, text: func(d *Device) string { return d.Path }},
		{names: []string{"size"}, number: func(d *Device) int64 { return d.Size }},
		{names: []string{"sectorsize", "sector_size"}, number: func(d *Device) int64 { return d.Sector }},
		{names: []string{"model"}, text: func(d *Device) string { return d.Model }},
		{names: []string{"serial"}, text: func(d *Device) string { return d.Serial }},
		{names: []string{"wwn", "wwid"}, text: func(d *Device) string { return d.WWN }},
		{names: []string{"transport"}, text: func(d *Device) string { return d.Transport }},
		{names: []string{"rotational"}, truth: func(d *Device) bool { return d.Rotational }},
		{names: []string{"removable"}, truth: func(d *Device) bool { return d.Removable }},
		{names: []string{"readonly"}, truth: func(d *Device) bool { return d.ReadOnly }},
		{names: []string{"by-id", "by_id"}, list: (*Device).IDs},
		{names: []string{"links", "symlinks"}, list: func(d *Device) []string { return d.Links }},
		{names: []string{"buspath", "bus_path", "bus-path"}, text: func(d *Device) string { return d.BusPath }},
	}
}

// strings returns the values of a field of text.
func (f field) strings(d *Device) []string {
	if f.list != nil {
		return f.list(d)
	}
	return []string{f.text(d)}
}

func (f field) isText() bool { return f.text != nil || f.list != nil }

// operators returns what may follow the field.
func (f field) operators() string {
	switch {
	case f.isText():
		return "==, !=, =~, .startsWith, .endsWith or .contains"
	case f.number != nil:
		return "==, !=, <, <=, > or >="
	default:
		return "== or !=, or nothing"
	}
}

// compareText returns the comparison of a field with a string.
func (f field) compareText(op, want string) func(*Device) bool {
	tests := map[string]func(string) bool{
		"==":         func(s string) bool { return s == want },
		"!=":         func(s string) bool { return s == want },
		"=~":         func(s string) bool { return glob(want, s) },
		"startsWith": func(s string) bool { return strings.HasPrefix(s, want) },
		"endsWith":   func(s string) bool { return strings.HasSuffix(s, want) },
		"contains":   func(s string) bool { return strings.Contains(s, want) },
	}
	test := tests[op]
	if test == nil {
		return nil
	}
	return func(d *Device) bool { return slices.ContainsFunc(f.strings(d), test) != (op == "!=") }
}

// compareNumber returns the comparison of a field with a number.
func (f field) compareNumber(op string, want int64) func(*Device) bool {
	tests := map[string]func(int) bool{
		"==": func(c int) bool { return c == 0 },
		"!=": func(c int) bool { return c != 0 },
		"<":  func(c int) bool { return c < 0 },
		"<=": func(c int) bool { return c <= 0 },
		">":  func(c int) bool { return c > 0 },
		">=": func(c int) bool { return c >= 0 },
	}
	test := tests[op]
	if test == nil {
		return nil
	}
	return func(d *Device) bool { return test(cmp.Compare(f.number(d), want)) }
}

// glob reports whether all of s matches a pattern in which * stands for any
// text and ? for one byte.
func glob(pattern, s string) bool {
	var p, i int
	star, mark := -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0: // let the last * take one more
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// unit is the number of bytes of a unit, or 0.
func unit(name string) float64 {
	base, rest := 1000., name
	if r, ok := strings.CutSuffix(name, "iB"); ok {
		base, rest = 1024, r
	} else if rest, ok = strings.CutSuffix(name, "B"); !ok {
		return 0
	}
	if rest == "k" && base == 1000 {
		rest = "K"
	}
	power := strings.Index("KMGTP", rest)
	if len(rest) != 1 || power < 0 {
		return 0
	}
	n := base
	for range power {
		n *= base
	}
	return n
}

// unitSize returns n so that a selector can compare it: "256.06GB".
func unitSize(n int64) string {
	for _, u := range []string{"PB", "TB", "GB", "MB", "KB"} {
		if size := unit(u); float64(n) >= size {
			return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", float64(n)/size), "0"), ".") + u
		}
	}
	return fmt.Sprint(n)
}
