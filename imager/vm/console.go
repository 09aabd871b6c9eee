package vm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

// final matches what firmware and boot loaders print when they have nothing to
// start. Most of them wait for a key then, and would wait for ever.
var final = regexp.MustCompile(strings.Join(nothingToStart, "|"))

// fatal matches final, and what boot loaders and systems print when this start
// has failed. A machine that restarts may be luckier the next time.
var fatal = regexp.MustCompile(strings.Join(append([]string{
	`(?i:Out of resources)`, `(?i:Error loading \\?EFI\\)`, `(?i:Error starting kernel image)`,
	`^error: .*(not found|no such|unknown|invalid|out of memory|you need to load the kernel)`,
	`Initramfs unpacking failed`, `Kernel panic`, `Oops: `, `BUG: unable to handle`,
	`kiln: failed stage=`,
}, nothingToStart...), "|"))

var nothingToStart = []string{
	`(?i:EFI Internal Shell)`, `(?i:UEFI Interactive Shell)`, `(?i:No bootable (option|device))`,
	`(?i:Access Denied)`, `(?i:Security Violation)`, `grub rescue>`, `GRUB .*Hard Disk Error`, `kiln: no slot can be loaded`,
}

// controls matches the terminal control sequences that firmware and boot loaders
// print.
var controls = regexp.MustCompile(`\x1b(\[[0-9;?=]*[A-Za-z]|[()][0-9A-Za-z]|[=>])|[\x00\x07\x0f]`)

// maxConsole bounds what is kept of a machine's output, in bytes: one that
// prints without end is not let fill the memory.
const maxConsole = 16 << 20

// console collects the output of a machine as lines.
type console struct {
	fatal *regexp.Regexp

	mu     sync.Mutex
	text   bytes.Buffer // complete lines, each with a newline
	tail   []byte       // what there is of the next
	done   bool         // there will be no more
	change chan struct{}
}

// newConsole returns a console that takes for a failure what matches fatal.
func newConsole(fatal *regexp.Regexp) *console {
	return &console{fatal: fatal, change: make(chan struct{})}
}

// follow reads r to its end and writes what it reads to copy too, if that is
// not nil.
func (c *console) follow(r io.Reader, copy io.Writer) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		if n > 0 && copy != nil {
			_, _ = copy.Write(buf[:n]) // what watches has no say in the boot
		}
		c.add(buf[:n], err != nil)
		if err != nil {
			return
		}
	}
}

func (c *console) add(p []byte, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail = append(c.tail, p...)
	if len(c.tail) > 64<<10 { // no line is that long
		c.tail = append(c.tail, '\n')
	}
	rest := c.tail
	for {
		line, after, ok := bytes.Cut(rest, []byte("\n"))
		if !ok {
			break
		}
		if c.text.Len() < maxConsole {
			c.text.Write(clean(line))
			c.text.WriteByte('\n')
		}
		rest = after
	}
	c.tail = append(c.tail[:0], rest...)
	c.done = c.done || done
	close(c.change)
	c.change = make(chan struct{})
}

// clean returns a line as a terminal shows it, more or less.
func clean(line []byte) []byte {
	if bytes.ContainsAny(line, "\x1b\x00\x07\x0f") {
		line = controls.ReplaceAll(line, nil)
	}
	line = bytes.TrimRight(line, "\r")
	if i := bytes.LastIndexByte(line, '\r'); i >= 0 { // the line was written over
		line = line[i+1:]
	}
	return line
}

// state returns the lines from byte from on, what there is of the next line, and
// a channel that is closed when there is more.
func (c *console) state(from int) (lines, tail string, done bool, change <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text.Bytes()[from:]), string(clean(c.tail)), c.done, c.change
}

// String returns everything that was printed.
func (c *console) String() string {
	lines, tail, _, _ := c.state(0)
	return lines + tail
}

// last returns the last n lines, indented, for errors.
func (c *console) last(n int) string {
	lines := strings.FieldsFunc(c.String(), func(r rune) bool { return r == '\n' })
	if len(lines) == 0 {
		return "\t(it printed nothing)"
	}
	return "\t" + strings.Join(lines[max(0, len(lines)-n):], "\n\t")
}

// A FailedError is a machine that printed what means there will be no boot.
type FailedError struct {
	Line    string // that it printed
	Context string // the lines before it, and those that came at once after it
}

func (e *FailedError) Error() string {
	return fmt.Sprintf("the machine failed: %s\n%s", e.Line, e.Context)
}

// afterFailure is how long to read on after a line that means failure: for what
// explains it, and for the rest of the line.
const afterFailure = 500 * time.Millisecond

// wait returns the first line from byte *pos on that matches one of until, and
// moves *pos behind it.
func (c *console) wait(ctx context.Context, pos *int, until []*regexp.Regexp) (string, error) {
	for {
		lines, tail, done, change := c.state(*pos)
		for line := range strings.Lines(lines) {
			text := strings.TrimSuffix(line, "\n")
			for _, re := range until {
				if re.MatchString(text) {
					*pos += len(line)
					return text, nil
				}
			}
			if c.fatal.MatchString(text) {
				return "", c.failed(ctx, *pos)
			}
			*pos += len(line)
		}
		switch {
		case done && c.fatal.MatchString(tail):
			return "", c.failed(ctx, *pos)
		case done:
			return "", fmt.Errorf("%w before it printed %s\n%s", ErrEnded, names(until), c.last(20))
		case c.fatal.MatchString(tail): // a prompt, if there is no more
			timer := time.NewTimer(afterFailure)
			select {
			case <-ctx.Done():
			case <-change:
				timer.Stop()
				continue
			case <-timer.C:
			}
			return "", c.failed(ctx, *pos)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the machine has not printed %s: %w\n%s", names(until), context.Cause(ctx), c.last(20))
		case <-change:
		}
	}
}

// failed returns the error for the fatal line at byte pos.
func (c *console) failed(ctx context.Context, pos int) error {
	timer := time.NewTimer(afterFailure)
	defer timer.Stop()
	for wait := true; wait; {
		_, _, done, change := c.state(pos)
		if done {
			break
		}
		select {
		case <-change:
		case <-ctx.Done():
			wait = false
		case <-timer.C:
			wait = false
		}
	}
	lines, tail, _, _ := c.state(pos)
	line, _, _ := strings.Cut(lines+tail, "\n")
	return &FailedError{line, c.last(30)}
}

func names(until []*regexp.Regexp) string {
	var s []string
	for _, re := range until {
		s = append(s, re.String())
	}
	return strings.Join(s, " or ")
}
