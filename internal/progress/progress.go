// Package progress tells a person, or a pipeline, how far a command is: bars
// with rate and time left on a terminal, plain lines elsewhere, or one JSON
// object per event.
package progress

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Mode is the form in which progress is shown.
type Mode string

// Modes.
const (
	Bars  Mode = "bars"  // for a terminal
	Plain Mode = "plain" // a line for each event
	JSON  Mode = "json"  // a JSON object for each event
	None  Mode = "none"  // nothing but warnings and errors
)

// Modes lists the modes a user may choose.
func Modes() []string { return []string{string(Bars), string(Plain), string(JSON), string(None)} }

// Reporter writes events to one stream. It is safe for concurrent use.
type Reporter struct {
	mu   sync.Mutex
	w    io.Writer
	mode Mode
	open *Bar // repainted below every line
	now  func() time.Time
}

// New returns a reporter that writes to w.
func New(w io.Writer, mode Mode) *Reporter { return &Reporter{w: w, mode: mode, now: time.Now} }

// Logger returns a logger whose records are events of the reporter.
func (r *Reporter) Logger() *slog.Logger { return slog.New(handler{r: r}) }

func (r *Reporter) line(level slog.Level, text string, fields map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.mode == None && level < slog.LevelWarn:
	case r.mode == JSON:
		event := map[string]any{"event": text, "level": strings.ToLower(level.String())}
		for k, v := range fields {
			event[k] = v
		}
		r.json(event)
	default:
		r.erase()
		fmt.Fprintln(r.w, text)
		r.paint()
	}
}

func (r *Reporter) json(event map[string]any) {
	data, err := json.Marshal(event)
	if err != nil {
		data = fmt.Appendf(nil, `{"event":"error","text":%q}`, err)
	}
	fmt.Fprintf(r.w, "%s\n", data)
}

// Bar is the progress of one step over a number of bytes.
type Bar struct {
	r       *Reporter
	name    string
	total   int64
	done    int64
	start   time.Time
	painted time.Time
}

// Bar begins a step of total bytes. Its end must be told with Done.
func (r *Reporter) Bar(name string, total int64) *Bar {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := &Bar{r: r, name: name, total: total, start: r.now()}
	r.open = b
	return b
}

// Add counts n more bytes.
func (b *Bar) Add(n int64) {
	b.r.mu.Lock()
	defer b.r.mu.Unlock()
	b.done += n
	const interval = 100 * time.Millisecond
	if now := b.r.now(); now.Sub(b.painted) >= interval {
		b.painted = now
		switch b.r.mode {
		case Bars:
			b.r.erase()
			b.r.paint()
		case JSON:
			b.r.json(map[string]any{"event": "progress", "step": b.name, "done": b.done, "total": b.total})
		}
	}
}

// Done ends the step and tells what it took. It may be called twice, for
// example in a defer after an error, where the second call does nothing.
func (b *Bar) Done(err error) {
	b.r.mu.Lock()
	defer b.r.mu.Unlock()
	if b.r.open != b {
		return
	}
	b.r.erase()
	b.r.open = nil
	if err != nil {
		return
	}
	elapsed := b.r.now().Sub(b.start)
	switch b.r.mode {
	case JSON:
		b.r.json(map[string]any{"event": "done", "step": b.name, "bytes": b.done, "seconds": elapsed.Seconds()})
	case Bars, Plain:
		fmt.Fprintf(b.r.w, "%s: %s in %.1f s (%s/s)\n", b.name, Bytes(b.done), elapsed.Seconds(), Bytes(rate(b.done, elapsed)))
	}
}

// erase takes the painted bar off the screen. The caller holds the lock.
func (r *Reporter) erase() {
	if r.mode == Bars && r.open != nil && !r.open.painted.IsZero() {
		io.WriteString(r.w, "\r\x1b[K")
	}
}

func (r *Reporter) paint() {
	b := r.open
	if r.mode != Bars || b == nil || b.painted.IsZero() {
		return
	}
	elapsed := r.now().Sub(b.start)
	speed := rate(b.done, elapsed)
	const width = 30
	fraction := 1.0
	if b.total > 0 {
		fraction = min(1, float64(b.done)/float64(b.total))
	}
	filled := int(fraction * width)
	left := "--"
	if speed > 0 {
		left = (time.Duration(max(0, b.total-b.done)/speed) * time.Second).String()
	}
	fmt.Fprintf(r.w, "%s [%s%s] %3.0f%% %s/s, %s left", b.name,
		strings.Repeat("=", filled), strings.Repeat(" ", width-filled), fraction*100, Bytes(speed), left)
}

func rate(n int64, d time.Duration) int64 {
	return int64(float64(n) / max(d.Seconds(), 0.001))
}

// Bytes returns n with a binary unit and three significant digits.
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 999.5 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	digits := 0
	switch {
	case v < 9.995:
		digits = 2
	case v < 99.95:
		digits = 1
	}
	return fmt.Sprintf("%.*f %ciB", digits, v, units[i])
}

// handler turns log records into events: the message, then the attributes as
// key=value.
type handler struct {
	r     *Reporter
	attrs []slog.Attr
}

func (h handler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h handler) Handle(_ context.Context, rec slog.Record) error {
	text := rec.Message
	if h.r.mode == JSON {
		fields := map[string]any{}
		add := func(a slog.Attr) bool { fields[a.Key] = a.Value.Resolve().Any(); return true }
		for _, a := range h.attrs {
			add(a)
		}
		rec.Attrs(add)
		h.r.line(rec.Level, text, fields)
		return nil
	}
	add := func(a slog.Attr) bool {
		v := a.Value.String()
		if v == "" || strings.ContainsAny(v, " \t\n\"=") {
			v = fmt.Sprintf("%q", v)
		}
		text += " " + a.Key + "=" + v
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	rec.Attrs(add)
	if rec.Level >= slog.LevelWarn {
		text = strings.ToLower(rec.Level.String()) + ": " + text
	}
	h.r.line(rec.Level, text, nil)
	return nil
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	return h
}

// WithGroup is not needed by kiln's records, which are flat.
func (h handler) WithGroup(string) slog.Handler { return h }
