package grub

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// EnvSize is the size of an environment block in bytes. GRUB cannot write files,
// but it can overwrite this one in place.
const EnvSize = 1024

const envSignature = "# GRUB Environment Block\n"

// ErrEnv is wrapped by the errors for an environment block that is not one, or
// for variables that do not fit.
var ErrEnv = errors.New("bad GRUB environment block")

// Env is what an environment block holds: a file of EnvSize bytes that GRUB's
// load_env and save_env read and change. It begins with a line that names it,
// then has a line NAME=VALUE for each variable, in which a backslash stands
// before a backslash and before a newline of the value, and is filled with #.
// All variables are in the first 512 bytes, so that one sector is all that
// differs between two of them.
type Env []Variable

// Variable is one of Env.
type Variable struct{ Name, Value string }

// Get returns the value of a variable, "" if there is none.
func (e Env) Get(name string) string {
	for _, v := range e {
		if v.Name == name {
			return v.Value
		}
	}
	return ""
}

// With returns a copy of e with a variable set to a value or, for "", without it.
func (e Env) With(name, value string) Env {
	out := slices.Clone(e)
	i := slices.IndexFunc(out, func(v Variable) bool { return v.Name == name })
	switch {
	case value == "" && i < 0:
		return out
	case value == "":
		return slices.Delete(out, i, i+1)
	case i < 0:
		return append(out, Variable{name, value})
	}
	out[i].Value = value
	return out
}

// Encode returns the environment block.
func (e Env) Encode() ([]byte, error) {
	b := []byte(envSignature)
	for i, v := range e {
		if !validName(v.Name) {
			return nil, fmt.Errorf("%w: variable name %q, want letters, digits and _, no digit first", ErrEnv, v.Name)
		}
		if slices.ContainsFunc(e[:i], func(w Variable) bool { return w.Name == v.Name }) {
			return nil, fmt.Errorf("%w: variable %s is there twice", ErrEnv, v.Name)
		}
		if strings.Contains(v.Value, "\x00") {
			return nil, fmt.Errorf("%w: the value of %s has a NUL", ErrEnv, v.Name)
		}
		b = fmt.Appendf(b, "%s=%s\n", v.Name, strings.NewReplacer("\\", "\\\\", "\n", "\\\n").Replace(v.Value))
	}
	if len(b) > sectorSize {
		return nil, fmt.Errorf("%w: its variables take %d bytes, %d fit; remove some", ErrEnv, len(b), sectorSize)
	}
	return append(b, bytes.Repeat([]byte{'#'}, EnvSize-len(b))...), nil
}

// ParseEnv reads an environment block, of grub-editenv too.
func ParseEnv(b []byte) (Env, error) {
	if len(b) != EnvSize {
		return nil, fmt.Errorf("%w: %d bytes, want %d", ErrEnv, len(b), EnvSize)
	}
	rest, ok := strings.CutPrefix(string(b), envSignature)
	if !ok {
		return nil, fmt.Errorf("%w: it begins with %q, want %q", ErrEnv, b[:len(envSignature)], envSignature)
	}
	var e Env
	for rest != "" {
		if rest[0] == '#' { // a comment, or the end
			_, rest, _ = strings.Cut(rest, "\n")
			continue
		}
		name, after, ok := strings.Cut(rest, "=")
		if !ok || !validName(name) {
			line, _, _ := strings.Cut(rest, "\n")
			return nil, fmt.Errorf("%w: %q is no variable", ErrEnv, line)
		}
		var value strings.Builder
		end := 0
		for ; end < len(after) && after[end] != '\n'; end++ {
			if after[end] == '\\' {
				end++
			}
			if end < len(after) {
				value.WriteByte(after[end])
			}
		}
		if end >= len(after) {
			return nil, fmt.Errorf("%w: the value of %s has no end", ErrEnv, name)
		}
		if slices.ContainsFunc(e, func(w Variable) bool { return w.Name == name }) {
			return nil, fmt.Errorf("%w: variable %s is there twice", ErrEnv, name)
		}
		e = append(e, Variable{name, value.String()})
		rest = after[end+1:]
	}
	return e, nil
}

func validName(s string) bool {
	for i, r := range s {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}
