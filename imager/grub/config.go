package grub

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Config is what grub.cfg says. It is the subset of GRUB's language that an
// image needs: Encode writes it and ParseConfig reads it.
type Config struct {
	Entries []Entry
	// Default is the index of the entry that is booted. If its files cannot be
	// loaded, GRUB goes on with the others in their order.
	Default int
	// Timeout is the number of seconds the menu is shown; 0 shows none.
	Timeout int
	// Serial says that the menu is also on the first serial port, with 115,200
	// bit/s.
	Serial bool
}

// Entry is one choice in the menu. Linux and Initrd are absolute paths on the
// file system that holds grub.cfg.
type Entry struct {
	Title  string
	Linux  string
	Initrd string
	// Args is the kernel command line as the kernel reads it: words separated
	// by spaces; double quotes around a word, or around a value after "=",
	// protect spaces in it.
	//
	// GRUB passes key="a b" as "key=a b", which the kernel reads alike, and puts
	// BOOT_IMAGE=Linux in front of all. It puts a backslash before any other
	// quote and before a backslash, so that such words are refused.
	Args string
}

// ErrConfig is wrapped by the errors of Encode and ParseConfig.
var ErrConfig = errors.New("bad GRUB configuration")

// maxCommandLine is what the kernel reads on x86; it drops the rest silently.
const maxCommandLine = 2047

const (
	serialLine   = "serial --unit=0 --speed=115200"
	serialInput  = "terminal_input console serial"
	serialOutput = "terminal_output console serial"
	serialLines  = serialLine + "\n" + serialInput + "\n" + serialOutput + "\n"

	bootImage  = "BOOT_IMAGE=" // GRUB's own argument
	maxTimeout = 24 * 60 * 60
)

// Encode returns c as the text of grub.cfg.
func (c *Config) Encode() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	var b []byte
	if c.Serial {
		b = append(b, serialLines...)
	}
	b = fmt.Appendf(b, "set default=%d\n", c.Default)
	if others := c.others(); others != "" {
		b = fmt.Appendf(b, "set fallback=%s\n", quote(others))
	}
	b = fmt.Appendf(b, "set timeout=%d\n", c.Timeout)
	for _, e := range c.Entries {
		linux, err := e.linux()
		if err != nil {
			return nil, err
		}
		b = fmt.Appendf(b, "menuentry %s {\n\techo %s\n\t%s\n", quote(e.Title), quote("Loading "+e.Title), linux)
		if e.Initrd != "" {
			b = fmt.Appendf(b, "\tinitrd %s\n", quote(e.Initrd))
		}
		b = append(b, "}\n"...)
	}
	return b, nil
}

// linux is the command that loads the kernel.
func (e *Entry) linux() (string, error) {
	words, err := e.words()
	if err != nil {
		return "", err
	}
	line := "linux " + quote(e.Linux)
	for _, w := range words {
		line += " " + quote(w)
	}
	return line, nil
}

// others are the indices of the entries that are not the default.
func (c *Config) others() string {
	var others []string
	for i := range c.Entries {
		if i != c.Default {
			others = append(others, strconv.Itoa(i))
		}
	}
	return strings.Join(others, " ")
}

func (c *Config) check() error {
	switch {
	case len(c.Entries) == 0:
		return fmt.Errorf("%w: no entries", ErrConfig)
	case c.Default < 0 || c.Default >= len(c.Entries):
		return fmt.Errorf("%w: default is entry %d of %d (they count from 0)", ErrConfig, c.Default, len(c.Entries))
	case c.Timeout < 0 || c.Timeout > maxTimeout:
		return fmt.Errorf("%w: timeout of %d seconds, want 0 to %d", ErrConfig, c.Timeout, maxTimeout)
	}
	for _, e := range c.Entries {
		if err := e.check(); err != nil {
			return fmt.Errorf("%w: entry %q: %w", ErrConfig, e.Title, err)
		}
	}
	return nil
}

func (e *Entry) check() error {
	if e.Title == "" || strings.ToValidUTF8(e.Title, "\x00") != e.Title || strings.ContainsFunc(e.Title, isControl) {
		return errors.New("a title is UTF-8 without control characters, and not empty")
	}
	if err := checkPath(e.Linux); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	if e.Initrd != "" {
		if err := checkPath(e.Initrd); err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
	}
	words, err := e.words()
	if err != nil {
		return err
	}
	n := len(passed(bootImage + e.Linux))
	for _, w := range words {
		n += 1 + len(passed(w))
	}
	if n > maxCommandLine {
		return fmt.Errorf("kernel command line of %d bytes, with %s%s, the kernel reads %d", n, bootImage, e.Linux, maxCommandLine)
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7F || r >= 0x80 && r < 0xA0 }

func checkPath(name string) error {
	if !strings.HasPrefix(name, "/") {
		return fmt.Errorf("path %q does not begin with /", name)
	}
	if i := strings.IndexFunc(name, altered); i >= 0 {
		return fmt.Errorf("path %q has %q, which GRUB does not pass on unchanged", name, name[i])
	}
	return nil
}

// altered says which characters GRUB or the kernel would change or take for
// something else. Beyond ASCII, the kernel takes the byte 0xA0 for a space.
func altered(r rune) bool {
	return r < ' ' || r > '~' || r == '"' || r == '\'' || r == '\\'
}

// words returns the words of the kernel command line, without quotes.
func (e *Entry) words() ([]string, error) {
	var words []string
	rest := strings.TrimLeft(e.Args, " ")
	for rest != "" {
		end, quoted := 0, false
		for end < len(rest) && (quoted || rest[end] != ' ') {
			if rest[end] == '"' {
				quoted = !quoted
			}
			end++
		}
		word := rest[:end]
		if quoted {
			return nil, fmt.Errorf("kernel argument %s: a quote without its partner", word)
		}
		plain := unquote(word)
		if i := strings.IndexFunc(plain, altered); i >= 0 || plain == "" {
			return nil, fmt.Errorf("kernel argument %s: GRUB cannot pass it on unchanged; it passes printable ASCII without quotes (other than around a word or a value) and backslashes", word)
		}
		words = append(words, plain)
		rest = strings.TrimLeft(rest[end:], " ")
	}
	return words, nil
}

// unquote takes off the quotes that the kernel takes off.
func unquote(word string) string {
	if len(word) >= 2 && word[0] == '"' && word[len(word)-1] == '"' {
		return word[1 : len(word)-1]
	}
	key, value, ok := strings.Cut(word, "=")
	if ok && len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		return key + "=" + value[1:len(value)-1]
	}
	return word
}

// requote is the reverse of unquote.
func requote(word string) string {
	if !strings.Contains(word, " ") {
		return word
	}
	if key, value, ok := strings.Cut(word, "="); ok && !strings.Contains(key, " ") {
		return key + `="` + value + `"`
	}
	return `"` + word + `"`
}

// passed is what GRUB makes of a word on the kernel command line.
func passed(word string) string {
	if strings.Contains(word, " ") {
		return `"` + word + `"`
	}
	return word
}

// quote returns s as one word of GRUB's language, in which nothing is special
// between single quotes except their end.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
