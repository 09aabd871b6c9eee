// Package console prints the milestones of a node's start, one line each, for
// people and for programs that watch the console:
//
//	kiln: stage=NAME t=SECONDS[ KEY=VALUE…]
//	kiln: module name=NAME state=STATE extension=NAME[ parameters=…][ reason=…] t=SECONDS
//	kiln: ready KEY=VALUE… t=SECONDS
//	kiln: failed stage=NAME error="…" t=SECONDS
//	kiln: note text="…" t=SECONDS
//
// SECONDS count from the start of the kernel. A value that is empty is "-"; one
// with white space, quotes or bytes that do not print is quoted as in Go and C.
package console

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Prefix is what every line begins with.
const Prefix = "kiln: "

// A Field is a key and its value on a line.
type Field struct{ Key, Value string }

// F returns the Field with the value formatted as by fmt.Sprint.
func F(key string, value any) Field { return Field{key, fmt.Sprint(value)} }

// A Console writes milestones.
type Console struct {
	w   io.Writer
	now func() time.Duration
}

// New returns a Console that writes every line to w with one call. now is the
// time since the kernel started.
func New(w io.Writer, now func() time.Duration) *Console { return &Console{w, now} }

// Stage reports that the named stage is done.
func (c *Console) Stage(name string, fields ...Field) {
	c.line("", append([]Field{{"stage", name}, c.t()}, fields...))
}

// Ready reports that the node is up.
func (c *Console) Ready(fields ...Field) {
	c.line("ready", append(fields, c.t()))
}

// Failed reports that the named stage failed, and the start with it.
func (c *Console) Failed(stage string, err error) {
	c.line("failed", []Field{{"stage", stage}, {"error", err.Error()}, c.t()})
}

// Module reports what became of a kernel module.
func (c *Console) Module(fields ...Field) {
	c.line("module", append(fields, c.t()))
}

// Note remarks on something that stops nothing.
func (c *Console) Note(text string) {
	c.line("note", []Field{{"text", text}, c.t()})
}

func (c *Console) t() Field {
	return Field{"t", strconv.FormatFloat(c.now().Seconds(), 'f', 3, 64)}
}

func (c *Console) line(word string, fields []Field) {
	var b strings.Builder
	b.WriteString(Prefix + word)
	for i, f := range fields {
		if i > 0 || word != "" {
			b.WriteByte(' ')
		}
		b.WriteString(f.Key + "=" + quote(f.Value, f.Key == "error" || f.Key == "text"))
	}
	b.WriteByte('\n')
	_, _ = io.WriteString(c.w, b.String()) // there is nowhere else to report to
}

func quote(s string, always bool) string {
	if s == "" {
		s = "-"
	}
	special := func(r rune) bool { return r <= ' ' || r == '"' || r == '\\' || r == 0x7f || !strconv.IsPrint(r) }
	if always || strings.IndexFunc(s, special) >= 0 {
		return strconv.Quote(s)
	}
	return s
}
