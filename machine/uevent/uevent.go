// Package uevent reads the kernel's device events.
//
// A device's uevent file in sysfs holds lines "KEY=VALUE". The same keys arrive
// over a netlink socket of the family NETLINK_KOBJECT_UEVENT whenever a device
// appears, changes or goes: "ACTION@DEVPATH" and then the pairs, each ended by
// a zero byte, at most 2048 bytes of pairs (UEVENT_BUFFER_SIZE).
package uevent

import (
	"bytes"
	"fmt"
	"strings"
)

// An Event holds the pairs of an event or of a uevent file, such as ACTION,
// DEVPATH, SUBSYSTEM, DEVNAME and MODALIAS.
type Event map[string]string

// ParseFile reads the content of a uevent file in sysfs. Lines that are not
// pairs are skipped.
func ParseFile(data []byte) Event {
	e := Event{}
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		e.add(string(line))
	}
	return e
}

// ParseMessage reads a message of the kernel's netlink socket.
func ParseMessage(data []byte) (Event, error) {
	header, rest, ok := bytes.Cut(data, []byte{0})
	action, path, ok2 := strings.Cut(string(header), "@")
	if !ok || !ok2 || action == "" || path == "" {
		return nil, fmt.Errorf("uevent: message starts with %.80q, want \"ACTION@DEVPATH\"", header)
	}
	e := Event{}
	for pair := range bytes.SplitSeq(rest, []byte{0}) {
		e.add(string(pair))
	}
	if e["ACTION"] != action || e["DEVPATH"] != path {
		return nil, fmt.Errorf("uevent: message %.80q disagrees with its own ACTION and DEVPATH", header)
	}
	return e, nil
}

func (e Event) add(pair string) {
	if k, v, ok := strings.Cut(pair, "="); ok && k != "" {
		e[k] = v
	}
}
