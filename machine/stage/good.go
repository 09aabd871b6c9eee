//go:build linux

package stage

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/slots"
)

// good confirms the slot that the node was started from: it is up. Should that
// fail, the boot loader goes back to the other slot some day, which is said.
func (s *start) good(d *disk.Disk, slot string) {
	s.begin("good")
	if err := confirm("/dev/"+d.Name, slot); err != nil {
		s.console.Note(fmt.Sprintf("slot %s is not confirmed: %v", slot, err))
		return
	}
	s.done(console.F("slot", slot))
}

// settling returns a channel to close when the slot is confirmed, if it has to be.
func (s *start) settling() chan<- struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled = make(chan struct{})
	return s.settled
}

// settle waits for that, not for ever: who turns a node off as soon as it is up
// has seen it come up.
func (s *start) settle() {
	s.mu.Lock()
	settled := s.settled
	s.mu.Unlock()
	if settled == nil {
		return
	}
	select {
	case <-settled:
	case <-time.After(grace):
	}
}

func confirm(device, slot string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	all, err := slots.Open(f, size)
	if err != nil {
		return err
	}
	return all.Confirm(slot)
}
