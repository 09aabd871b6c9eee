package slots

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Tries is how often a boot loader starts a new slot before it gives up.
const Tries = 3

// Name is the name of a slot's unified kernel image in the directory EFI/Linux of
// the EFI system partition, from which systemd-boot takes what it has to know:
//
//	kiln-GENERATION-SLOT.efi
//	kiln-GENERATION-SLOT+LEFT.efi
//	kiln-GENERATION-SLOT+LEFT-DONE.efi
//
// Of images without a version it starts the one whose name sorts last, with
// numbers compared as such: the one of the highest generation. A counted image
// (systemd, "Automatic Boot Assessment") is renamed before each start and comes
// after all others once no tries are left.
type Name struct {
	Generation int    // from 1; higher with every switch
	Slot       string // A or B
	Counted    bool
	Left, Done int // tries, if they are counted
}

// ErrName is wrapped by the errors of ParseName.
var ErrName = errors.New("not the name of a slot's image")

const (
	namePrefix = "KILN-"
	nameSuffix = ".EFI"
	maxNumber  = 1 << 30
)

// ParseName parses the name of an image, with or without directories and suffix;
// the boot loader tells it in EFI variables in any case of letters.
func ParseName(path string) (Name, error) {
	base := strings.ToUpper(path[strings.LastIndexAny(path, `\/`)+1:])
	base, _, _ = strings.Cut(base, "@") // a profile in the image
	rest, ok := strings.CutPrefix(base, namePrefix)
	rest, count, counted := strings.Cut(strings.TrimSuffix(rest, nameSuffix), "+")
	generation, slot, ok2 := strings.Cut(rest, "-")
	n := Name{Slot: slot, Counted: counted}
	var err error
	if ok && ok2 && (slot == "A" || slot == "B") {
		n.Generation, err = number(generation)
	} else {
		err = ErrName
	}
	if counted && err == nil {
		left, done, two := strings.Cut(count, "-")
		if n.Left, err = number(left); err == nil && two {
			n.Done, err = number(done)
		}
	}
	if err != nil {
		return Name{}, fmt.Errorf("%w: %q", ErrName, path)
	}
	return n, nil
}

func number(s string) (int, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, ErrName
	}
	n, err := strconv.Atoi(s)
	if err != nil || n > maxNumber {
		return 0, ErrName
	}
	return n, nil
}

// String returns the name of the file.
func (n Name) String() string {
	s := fmt.Sprintf("kiln-%d-%s", n.Generation, n.Slot)
	if n.Counted {
		s += fmt.Sprintf("+%d", n.Left)
		if n.Done > 0 {
			s += fmt.Sprintf("-%d", n.Done)
		}
	}
	return s + ".efi"
}

// Usable says whether systemd-boot starts it without being told to.
func (n Name) Usable() bool { return !n.Counted || n.Left > 0 }
