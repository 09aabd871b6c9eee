package config

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"time"
)

// A Value is text, or a number as it was written.
type Value string

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *Value) UnmarshalText(text []byte) error {
	*v = Value(text)
	return nil
}

// Tags says which scalars of YAML are a Value.
func (Value) Tags() []string { return []string{"!!str", "!!int"} }

// An Object is what another program defines: JSON, in Go as encoding/json has
// it but for whole numbers, which are of type int or uint64.
type Object map[string]any

// A Duration is written as Go does: 1m30s, 100ms.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return errors.New("want a duration with a unit, for example 10s or 1m30s")
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string { return time.Duration(d).String() }

// A HardwareAddr is a MAC address of 48 bits, in lower case with colons.
type HardwareAddr string

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *HardwareAddr) UnmarshalText(text []byte) error {
	mac, err := net.ParseMAC(string(text))
	if err != nil || len(mac) != 6 {
		return errors.New("want a hardware address such as 52:54:00:12:34:56")
	}
	if bytes.Equal(mac, make([]byte, 6)) {
		return errors.New("want a hardware address that is not zero")
	}
	*a = HardwareAddr(mac.String())
	return nil
}

// A Mode is the permissions of a file, without set-user-ID, set-group-ID and
// sticky bits.
type Mode uint32

// UnmarshalText implements encoding.TextUnmarshaler. With or without quotes and
// leading zeros, the digits are octal.
func (m *Mode) UnmarshalText(text []byte) error {
	if !regexp.MustCompile(`^(0o?)?[0-7]{3}$`).Match(text) {
		return errors.New("want permissions in octal, 0000 to 0777")
	}
	n, err := strconv.ParseUint(string(text[len(text)-3:]), 8, 32)
	*m = Mode(n)
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// Tags says which scalars of YAML are a Mode.
func (Mode) Tags() []string { return []string{"!!str", "!!int"} }

func (m Mode) String() string { return fmt.Sprintf("%04o", uint32(m)) }
