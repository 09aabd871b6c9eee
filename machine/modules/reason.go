//go:build linux

package modules

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/kernel/modalias"
	"github.com/kilnhq/kiln/machine/kmsg"
)

// What became of a module.
type State string

const (
	Loaded  State = "loaded"
	Builtin State = "builtin" // part of the kernel
	Skipped State = "skipped" // sound, but not wanted or of no use here
	Failed  State = "failed"
)

// A Report says what became of a module, and why.
type Report struct {
	Name       string // as in /proc/modules; an alias that stands for nothing as it was asked for
	State      State
	Reason     string // for people; a loaded module has one if something is odd about it
	Parameters string // with which the kernel was asked to load it
	File       string
	Before     bool // was in the kernel when the Loader came to it
}

// Error is why a module could not be loaded.
type Error struct {
	Module string
	State  State  // Failed or Skipped
	Reason string // in words, with what the kernel had to say
	Err    error
}

func (e *Error) Error() string { return "module " + e.Module + ": " + e.Reason }

func (e *Error) Unwrap() error { return e.Err }

// maxMessages is how many of the kernel's messages a reason repeats.
const maxMessages = 4

// explain makes an Error of what finit_module returned. records are what the
// kernel logged meanwhile.
func explain(name string, err error, records []kmsg.Record) *Error {
	said := messages(name, records)
	e := &Error{Module: name, State: Failed, Err: err}
	var errno unix.Errno
	var path *fs.PathError
	switch {
	case !errors.As(err, &errno):
		e.Reason = err.Error()
		return e
	case errors.As(err, &path) && path.Op == "open":
		e.Reason = fmt.Sprintf("cannot read its file %s: %v", path.Path, errno)
		return e
	}
	has := func(part string) bool {
		return slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, part) })
	}
	words := errno.Error()
	switch errno {
	case unix.ENODEV, unix.ENXIO:
		e.State, words = Skipped, "no such device"
	case unix.EOPNOTSUPP:
		e.State, words = Skipped, "this machine cannot do that"
	case unix.EPERM:
		switch {
		case has("is blacklisted"):
			e.State, words = Skipped, "the kernel refuses it, as module_blacklist= tells it to"
		case has("Lockdown: "):
			words = "the kernel is locked down and takes signed modules only"
		default:
			words = "the kernel does not permit it: see module_blacklist=, kernel.modules_disabled and lockdown"
		}
	case unix.EKEYREJECTED, unix.ENOKEY, unix.ENOPKG:
		words = "the kernel takes modules only that are signed by a key it trusts"
	case unix.EBADMSG, unix.ELIBBAD:
		words = "its signature is damaged"
	case unix.ENOENT:
		words = "its own start did not find something"
		if has("Unknown symbol ") {
			words = "nothing in the kernel exports a symbol it needs"
		}
	case unix.ENOEXEC:
		words = "not a module for this kernel"
	case unix.EINVAL:
		switch {
		case has("disagrees about version of symbol "):
			words = "built against another kernel, or another version of a module"
		case has("for parameter "):
			words = "bad parameter"
		case has("Unknown symbol ") || has("namespace"):
			words = "the kernel does not let it use a symbol"
		}
	case unix.EBUSY:
		words = "in use: something else has its hardware or its name"
	case unix.EEXIST:
		words = "something else in the kernel has its name"
	case unix.EIO, unix.ETIMEDOUT:
		words = "its hardware does not answer"
	case unix.ENOMEM:
		words = "out of memory"
	}
	e.Reason = fmt.Sprintf("%s (%s)", words, unix.ErrnoName(errno))
	if more := len(said) - maxMessages; more > 0 {
		said = append(said[:maxMessages:maxMessages], fmt.Sprintf("%d more", more))
	}
	if len(said) > 0 {
		e.Reason += ": " + strings.Join(said, "; ")
	}
	return e
}

// remarks returns what the kernel held against a module that it loaded.
func remarks(name string, records []kmsg.Record) string {
	return strings.Join(slices.DeleteFunc(messages(name, records), func(s string) bool {
		return !strings.HasPrefix(s, "unknown parameter ")
	}), "; ")
}

// messages returns what the kernel logged about the module, each message once.
// Most name it first; some that are about whatever is loaded do not.
func messages(name string, records []kmsg.Record) []string {
	var said []string
	for _, r := range records {
		if r.Facility != 0 {
			continue
		}
		m := r.Message
		prefix, rest, _ := strings.Cut(m, ": ")
		switch {
		case modalias.Fold(prefix) == name:
			m = rest
		case strings.HasPrefix(m, "Loading of ") && strings.HasSuffix(m, " is rejected"),
			strings.HasPrefix(m, "Lockdown: ") && strings.Contains(m, "module"),
			strings.HasPrefix(m, "Module ") && modalias.Fold(m) == "Module "+name+" is blacklisted",
			strings.HasPrefix(m, "Invalid ELF "),
			strings.Contains(m, "decompression failed"):
		default:
			continue
		}
		if m = strings.TrimSpace(m); !slices.Contains(said, m) {
			said = append(said, m)
		}
	}
	return said
}
