package grub

import (
	"fmt"
	"strconv"
	"strings"
)

// A disk that is upgraded in place has two slots, the directories A and B beside
// grub/, each with a kernel, an initramfs and a SlotConfig that boots them. Which
// one is booted is in the environment block, in these variables:
//
//	slot    the slot to boot, A if there is none
//	trial   the other slot, if it is to be tried
//	tries   how often it may still be tried, 1 to MaxTries
//	failed  the slot that GRUB gave up, because its tries were used up or it
//	        could not be loaded
//
// Each try is counted before it is made. What was tried becomes the slot to boot
// when someone says so (Env.Confirm), not before.
const (
	SlotA = "A"
	SlotB = "B"

	MaxTries = 9

	// SlotConfigName is the name of a slot's configuration, in its directory. A
	// slot in which it is empty is not booted.
	SlotConfigName = "slot.cfg"
	// MaxSlotConfig is how many bytes a slot's configuration has at most.
	MaxSlotConfig = 8192
)

// slotsScript chooses the slot. GRUB cannot count, so that it looks for the
// number of tries in a list.
const slotsScript = `if [ -s $prefix/grubenv ]; then
	load_env -f $prefix/grubenv slot trial tries failed
fi
if [ "$slot" = B ]; then
	set other=A
else
	set slot=A
	set other=B
fi
if [ "$trial" = "$other" ]; then
	set left=
	set less=0
	for n in 1 2 3 4 5 6 7 8 9; do
		if [ "$tries" = "$n" ]; then
			set left=$less
		fi
		set less=$n
	done
	if [ -n "$left" -a -s /$trial/slot.cfg ]; then
		set tries=$left
		if save_env -f $prefix/grubenv tries; then
			echo "kiln: trying slot $trial, tries left: $left"
			source /$trial/slot.cfg
		fi
	fi
	echo "kiln: slot $trial failed"
	set failed=$trial
	unset trial
	unset tries
	save_env -f $prefix/grubenv trial tries failed
fi
for name in $slot $other; do
	if [ -s /$name/slot.cfg ]; then
		echo "kiln: booting slot $name"
		source /$name/slot.cfg
	fi
	echo "kiln: slot $name cannot be loaded"
	if [ "$name" = "$slot" -a "$failed" != "$slot" ]; then
		set failed=$slot
		save_env -f $prefix/grubenv failed
	fi
done
echo "kiln: no slot can be loaded"
set default=0
set timeout=30
menuentry 'Restart: no slot can be loaded' {
	reboot
}
menuentry 'Slot A' {
	source /A/slot.cfg
}
menuentry 'Slot B' {
	source /B/slot.cfg
}
`

// SlotsConfig returns the grub.cfg of a disk with two slots, which never changes.
// It shows no menu, unless neither slot can be loaded: then for 30 seconds,
// after which the machine restarts. With serial, what GRUB says is also on the
// first serial port, as in Config.
func SlotsConfig(serial bool) []byte {
	if serial {
		return []byte(serialLines + slotsScript)
	}
	return []byte(slotsScript)
}

// EncodeSlot returns the configuration of a slot that boots e.
func EncodeSlot(e Entry) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("%w: slot: %w", ErrConfig, err)
	}
	linux, err := e.linux()
	if err != nil {
		return nil, err
	}
	b := fmt.Appendf(nil, "echo %s\nif %s; then\n", quote("Loading "+e.Title), linux)
	if e.Initrd == "" {
		b = append(b, "\tboot\n"...)
	} else {
		b = fmt.Appendf(b, "\tif initrd %s; then\n\t\tboot\n\tfi\n", quote(e.Initrd))
	}
	b = append(b, "fi\n"...)
	if len(b) > MaxSlotConfig {
		return nil, fmt.Errorf("%w: slot: %d bytes, want at most %d; remove kernel arguments", ErrConfig, len(b), MaxSlotConfig)
	}
	return b, nil
}

// ParseSlot reads what EncodeSlot wrote, and nothing else.
func ParseSlot(data []byte) (Entry, error) {
	if len(data) > MaxSlotConfig {
		return Entry{}, fmt.Errorf("%w: slot: %d bytes, want at most %d", ErrConfig, len(data), MaxSlotConfig)
	}
	p := parser{entry: &Entry{}}
	for i, line := range strings.Split(string(data), "\n") {
		words, err := splitLine(strings.TrimSuffix(line, "; then"))
		switch {
		case err != nil:
		case i == 0 && len(words) == 2 && words[0] == "echo":
			p.entry.Title = strings.TrimPrefix(words[1], "Loading ")
		case len(words) > 1 && words[0] == "if":
			err = p.inEntry(words[1:])
		}
		if err != nil {
			return Entry{}, fmt.Errorf("%w: slot: line %d: %w", ErrConfig, i+1, err)
		}
	}
	again, err := EncodeSlot(*p.entry)
	if err != nil {
		return Entry{}, err
	}
	if string(again) != string(data) {
		return Entry{}, fmt.Errorf("%w: slot: it is not as it was written; for %q it would be\n%s", ErrConfig, p.entry.Title, again)
	}
	return *p.entry, nil
}

// State is what the environment block says about slots.
type State struct {
	Slot   string // that is booted: A or B
	Trial  string // the other one, if it is tried first; otherwise ""
	Tries  int    // how often it may still be tried, 0 to MaxTries
	Failed string // that GRUB gave up; "" is none
}

// State returns what GRUB takes the variables for.
func (e Env) State() State {
	s := State{Slot: SlotA}
	if e.Get("slot") == SlotB {
		s.Slot = SlotB
	}
	if failed := e.Get("failed"); failed == SlotA || failed == SlotB {
		s.Failed = failed
	}
	if trial := e.Get("trial"); trial == Other(s.Slot) {
		s.Trial = trial
		if n, err := strconv.Atoi(e.Get("tries")); err == nil && validTries(n) && strconv.Itoa(n) == e.Get("tries") {
			s.Tries = n
		}
	}
	return s
}

// Other returns the other slot.
func Other(slot string) string {
	if slot == SlotA {
		return SlotB
	}
	return SlotA
}

func validTries(n int) bool { return n >= 1 && n <= MaxTries }

// Try returns an environment in which a slot, not the one that is booted
// otherwise, is tried at the next so many boots.
func (e Env) Try(slot string, tries int) (Env, error) {
	if err := checkSlot(slot); err != nil {
		return nil, err
	}
	if booted := e.State().Slot; slot == booted {
		return nil, fmt.Errorf("slot %s is the one to go back to; try slot %s", slot, Other(booted))
	}
	if !validTries(tries) {
		return nil, fmt.Errorf("%d tries, want 1 to %d", tries, MaxTries)
	}
	return e.With("failed", "").With("trial", slot).With("tries", strconv.Itoa(tries)), nil
}

// Confirm returns an environment in which a slot is booted, and none is tried:
// the slot that was tried and is good, or the one to go back to.
func (e Env) Confirm(slot string) (Env, error) {
	if err := checkSlot(slot); err != nil {
		return nil, err
	}
	return e.With("slot", slot).With("trial", "").With("tries", "").With("failed", ""), nil
}

func checkSlot(slot string) error {
	if slot != SlotA && slot != SlotB {
		return fmt.Errorf("slot %q, want %s or %s", slot, SlotA, SlotB)
	}
	return nil
}
