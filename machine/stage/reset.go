//go:build linux

package stage

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/reset"
)

// reset erases STATE and EPHEMERAL if the kernel command line or META ask for
// that, before they are mounted.
func (s *start) reset(d *disk.Disk) error {
	s.begin("reset")
	var argument reset.Parts
	if v, ok := s.args.Get(argReset); ok {
		var err error
		if argument, err = reset.Parse(v); err != nil {
			s.console.Note(fmt.Sprintf("kernel argument %s: %v; it erases nothing", argReset, err))
		}
	}
	device := "/dev/" + d.Name
	parts, err := requested(device)
	if err != nil {
		s.console.Note(fmt.Sprintf("disk %s: %v; META erases nothing", d.Name, err))
	}
	if parts = parts.Union(argument); parts == (reset.Parts{}) {
		return nil
	}
	s.console.Note(announce(d.Name, parts, argument))
	kept, err := erase(device, parts, s.watchdog.Renew)
	if err != nil {
		return err
	}
	s.done(console.F("erased", parts), console.F("undiscarded", strings.Join(kept, ",")))
	return nil
}

// requested returns what META of a disk asks to erase.
func requested(device string) (reset.Parts, error) {
	f, err := os.Open(device)
	if err != nil {
		return reset.Parts{}, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return reset.Parts{}, err
	}
	return reset.Requested(f, size)
}

func erase(device string, parts reset.Parts, alive func()) (kept []string, err error) {
	f, err := reset.OpenDevice(device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return reset.Run(f, f.Size, parts, reset.Options{
		UUID:  func() [16]byte { return uuid.New() },
		Time:  min(max(time.Now().Unix(), 0), math.MaxInt32),
		Alive: alive,
	})
}

// announce says what is about to be erased, and why.
func announce(disk string, parts, argument reset.Parts) string {
	text := fmt.Sprintf("disk %s: erasing %v", disk, parts)
	if parts.State {
		text += ", with the machine configuration and the identity on STATE"
	}
	if argument == (reset.Parts{}) {
		return text + ", as META asks"
	}
	return text + fmt.Sprintf(", as the kernel argument %s asks, at each start with it", argReset)
}
