// Package kconfig reads the configuration a kernel was built with, as
// /boot/config-RELEASE and /proc/config.gz have it.
//
// A line is CONFIG_NAME=VALUE, where the value is y (built in), m (a module), a
// number, or a string in double quotes with backslashes before those and before
// backslashes. What is not set is a comment, or is not there at all. See the
// kernel's Documentation/kbuild/kconfig.rst.
package kconfig

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
)

// MaxSize bounds a configuration, in bytes, unpacked. That of Debian has 280 kB.
const MaxSize = 8 << 20

// ErrFormat is wrapped by the errors of Parse.
var ErrFormat = errors.New("not a kernel configuration")

// Config is the configuration a kernel was built with: values by name, without
// CONFIG_ and quotes. What is not set is not in it.
type Config map[string]string

// Yes reports whether an option is built in.
func (c Config) Yes(name string) bool { return c[name] == "y" }

// Arch returns the architecture that the kernel is for, "amd64" or "arm64"; ""
// if it is another.
func (c Config) Arch() string {
	switch {
	case c.Yes("X86_64"):
		return "amd64"
	case c.Yes("ARM64"):
		return "arm64"
	}
	return ""
}

// Parse reads a configuration, as it is or compressed by gzip. Lines that set
// nothing mean nothing.
func Parse(data []byte) (Config, error) {
	data, err := unpack(data)
	if err != nil {
		return nil, err
	}
	c := Config{}
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if name, is := strings.CutPrefix(name, "CONFIG_"); ok && is && name != "" && value != "n" {
			c[name] = unquote(value)
		}
	}
	if len(c) == 0 {
		return nil, fmt.Errorf("%w: no line CONFIG_NAME=VALUE in it", ErrFormat)
	}
	return c, nil
}

// Release returns the version that the comment at the top of a configuration
// names, as in "Linux/x86 6.12.117 Kernel Configuration"; "" if there is none.
func Release(data []byte) string {
	data, err := unpack(data)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data[:min(len(data), 4096)])) {
		words := strings.Fields(line)
		if len(words) == 5 && strings.HasPrefix(words[1], "Linux/") && words[3] == "Kernel" && words[4] == "Configuration" {
			return words[2]
		}
	}
	return ""
}

func unpack(data []byte) ([]byte, error) {
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if data, err = io.ReadAll(io.LimitReader(z, MaxSize+1)); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrFormat, MaxSize)
	}
	return data, nil
}

func unquote(value string) string {
	if len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
		return value
	}
	var b strings.Builder
	for i := 1; i < len(value)-1; i++ {
		if value[i] == '\\' && i+1 < len(value)-1 {
			i++
		}
		b.WriteByte(value[i])
	}
	return b.String()
}
