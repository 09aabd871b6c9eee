package vm

import (
	"encoding/json"
	"fmt"
	"io"
)

// A monitor controls QEMU by its protocol QMP (docs/interop/qmp-spec.rst in
// QEMU's source): one JSON object after the other, a greeting first, then
// answers to commands, with events in between.
type monitor struct {
	w   io.Writer
	dec *json.Decoder
	met bool // the greeting has been answered
}

func newMonitor(rw io.ReadWriter) *monitor { return &monitor{w: rw, dec: json.NewDecoder(rw)} }

// execute sends a command that has no result of interest. arguments may be nil.
func (m *monitor) execute(command string, arguments any) error {
	if !m.met {
		if err := m.answer(); err != nil {
			return fmt.Errorf("monitor: greeting: %w", err)
		}
		m.met = true
		if err := m.execute("qmp_capabilities", nil); err != nil {
			return err
		}
	}
	request := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments}
	if err := json.NewEncoder(m.w).Encode(request); err != nil {
		return fmt.Errorf("monitor: %s: %w", command, err)
	}
	if err := m.answer(); err != nil {
		return fmt.Errorf("monitor: %s: %w", command, err)
	}
	return nil
}

// answer reads up to the next object that is not an event.
func (m *monitor) answer() error {
	for {
		var a struct {
			Event string
			Error *struct{ Class, Desc string }
		}
		if err := m.dec.Decode(&a); err != nil {
			return err
		}
		if a.Error != nil {
			return fmt.Errorf("%s: %s", a.Error.Class, a.Error.Desc)
		}
		if a.Event == "" {
			return nil
		}
	}
}
