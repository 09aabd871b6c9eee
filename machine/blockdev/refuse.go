package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/kilnhq/kiln/internal/progress"
)

// ErrRefused is wrapped by all errors for a device that is there but must not
// be written.
var ErrRefused = errors.New("refused")

// Why a device is refused. A *Refusal wraps one of them, and ErrRefused.
var (
	ErrMounted  = errors.New("mounted")
	ErrSwap     = errors.New("in use as swap space")
	ErrMember   = errors.New("part of an active device")
	ErrRoot     = errors.New("the running root disk")
	ErrReadOnly = errors.New("read-only")
	ErrTooSmall = errors.New("too small")
	ErrNotDisk  = errors.New("not a disk")
	ErrInUse    = errors.New("in use by another program")
	ErrChanged  = errors.New("changed since the plan was made")
	ErrOccupied = errors.New("not empty")
)

// A Refusal says why a device must not be written.
type Refusal struct {
	Path   string
	Why    error  // one of the errors above
	Detail string // what was found, and what to do
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s: %v: %s", r.Path, r.Why, r.Detail) }

func (r *Refusal) Unwrap() []error { return []error{ErrRefused, r.Why} }

func (d *Device) refuse(why error, format string, args ...any) error {
	return &Refusal{Path: d.Path, Why: why, Detail: fmt.Sprintf(format, args...)}
}

// Check returns what forbids to overwrite d with a disk of at least minimum
// bytes, whatever anybody wants: all reasons at once, each a *Refusal.
func (d *Device) Check(minimum int64) error {
	if d.Kind != Disk && d.Kind != Loop && d.Kind != File {
		return d.notDisk()
	}
	var errs []error
	for _, u := range d.Users {
		why, next := ErrInUse, "stop the program that uses it"
		switch u.Use {
		case Root:
			why, next = ErrRoot, "boot from something else, or name another disk"
		case Mounted:
			why, next = ErrMounted, "unmount it"
		case Swap:
			why, next = ErrSwap, "run swapoff"
		case Member:
			why, next = ErrMember, "stop that device first"
		case LoopFile:
			next = "detach it with losetup -d"
		}
		errs = append(errs, d.refuse(why, "%s; %s", u, next))
	}
	if d.ReadOnly {
		next := readOnlyNext
		if d.Kind == File {
			next = "nobody may write the file; run 'chmod u+w'"
		}
		errs = append(errs, d.refuse(ErrReadOnly, "%s", next))
	}
	if d.Size < minimum {
		if d.Size == 0 {
			errs = append(errs, d.refuse(ErrTooSmall, "it has no medium or no space; at least %s is needed", progress.Bytes(minimum)))
		} else {
			errs = append(errs, d.refuse(ErrTooSmall, "%s (%d bytes); at least %s (%d bytes) is needed",
				progress.Bytes(d.Size), d.Size, progress.Bytes(minimum), minimum))
		}
	}
	return errors.Join(errs...)
}

const readOnlyNext = "the kernel does not allow writing; see 'blockdev --getro' and the switch on the medium"

func (d *Device) notDisk() error {
	if d.Kind == Partition {
		return d.refuse(ErrNotDisk, "it is a partition of %s; name the whole disk", d.Parent)
	}
	what := map[Kind]string{
		CD: "a CD or DVD drive", Floppy: "a floppy disk", RAM: "memory, lost at shutdown", ZRAM: "compressed memory, lost at shutdown",
		Mapper: "made of other devices by the device mapper", RAID: "made of other devices by md", BCache: "made of other devices by bcache",
		BootArea: "a boot area beside the disk", Flash: "raw flash memory",
	}[d.Kind]
	return d.refuse(ErrNotDisk, "it is %s; 'kiln disks' lists the disks", what)
}

// Occupied returns a *Refusal with ErrOccupied that says what is on d, or nil
// if it is empty. d must have been inspected.
func (d *Device) Occupied() error {
	if d.Contents == nil {
		return d.refuse(ErrOccupied, "nobody has looked what is on it")
	}
	if s := d.Contents.String(); s != "" {
		return d.refuse(ErrOccupied, "it holds %s; use --force to overwrite it", s)
	}
	return nil
}

// String says in one line what there is; "" is nothing.
func (c *Contents) String() string {
	var list []string
	for _, s := range c.Signatures {
		list = append(list, s.String())
	}
	if c.Table != "" {
		s := map[string]string{"gpt": "a GPT", "mbr": "an MBR"}[c.Table]
		if c.Damaged != "" {
			s += " that is damaged"
		}
		switch len(c.Partitions) {
		case 0:
			s += " without partitions"
		case 1:
			s += " with 1 partition: " + c.Partitions[0].String()
		default:
			var parts []string
			for _, p := range c.Partitions {
				parts = append(parts, p.String())
			}
			s += fmt.Sprintf(" with %d partitions: %s", len(parts), strings.Join(parts, ", "))
		}
		list = append(list, s)
	}
	if c.Unknown {
		list = append(list, "data of an unknown kind")
	}
	return strings.Join(list, " and ")
}

// String is the number and what is known of the partition.
func (p Part) String() string {
	s := fmt.Sprint(p.Number)
	if p.Label != "" {
		s += " " + p.Label
	}
	var what []string
	for _, sig := range p.Signatures {
		if sig.Label == p.Label {
			sig.Label = ""
		}
		what = append(what, sig.String())
	}
	if len(what) == 0 {
		return s
	}
	return s + " (" + strings.Join(what, ", ") + ")"
}

// explain adds to an error of open what to do about it.
func explain(err error) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return fmt.Errorf("%w; run as root", err)
	}
	return err
}
