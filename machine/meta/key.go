package meta

import (
	"fmt"
	"strconv"

	"github.com/kilnhq/kiln/internal/spelling"
)

// A Key names a value. 0 is not one.
type Key uint8

// MaxKey is the highest key.
const MaxKey = 0xff

// Keys. The first are those of Talos (pkg/machinery/meta), with its meaning. It
// numbers them upwards, so those up to 0x7f are left to it; 0x80 to 0xef are
// whoever's who wants one, and those from 0xf0 kiln's own.
const (
	Upgrade              Key = 0x06 // boot entry to fall back to
	StagedUpgradeImage   Key = 0x07 // reference of the image to upgrade to at the next boot
	StagedUpgradeOptions Key = 0x08 // JSON
	StateEncryption      Key = 0x09 // JSON
	MetalNetwork         Key = 0x0a // network settings of the platform metal, YAML
	DownloadURLCode      Key = 0x0b // what ${code} in the URL of the machine configuration stands for
	User1                Key = 0x0c
	User2                Key = 0x0d
	User3                Key = 0x0e
	UUIDOverride         Key = 0x0f // used instead of the UUID that the firmware tells
	MachineToken         Key = 0x10 // unique to the machine
	DiskImageBootloader  Key = 0x11 // removed at the first boot
	StagedWipeSelectors  Key = 0x12 // JSON

	MachineConfig Key = 0xf0 // machine configuration, YAML
	UserData      Key = 0xf1 // what the platform gave the machine, as it was
	ResetRequest  Key = 0xf2 // partitions to erase at the next boot
	UpgradeRecord Key = 0xf3 // what an upgrade, and the confirmation of it, has to remember
)

// Known returns the keys that have names, in ascending order.
func Known() []Named {
	return []Named{
		{Upgrade, "upgrade"},
		{StagedUpgradeImage, "staged-upgrade-image"},
		{StagedUpgradeOptions, "staged-upgrade-options"},
		{StateEncryption, "state-encryption"},
		{MetalNetwork, "metal-network"},
		{DownloadURLCode, "download-url-code"},
		{User1, "user-1"},
		{User2, "user-2"},
		{User3, "user-3"},
		{UUIDOverride, "uuid-override"},
		{MachineToken, "machine-token"},
		{DiskImageBootloader, "disk-image-bootloader"},
		{StagedWipeSelectors, "staged-wipe-selectors"},
		{MachineConfig, "machine-config"},
		{UserData, "user-data"},
		{ResetRequest, "reset-request"},
		{UpgradeRecord, "upgrade-record"},
	}
}

// Named is a key with a name.
type Named struct {
	Key  Key
	Name string
}

// Name returns the key's name, or "" if it has none.
func (k Key) Name() string {
	for _, n := range Known() {
		if n.Key == k {
			return n.Name
		}
	}
	return ""
}

// Hex returns the key as a number: 0x0a.
func (k Key) Hex() string { return fmt.Sprintf("0x%02x", uint8(k)) }

// String returns the key as people like to read it: 0x0a (metal-network).
func (k Key) String() string {
	if name := k.Name(); name != "" {
		return k.Hex() + " (" + name + ")"
	}
	return k.Hex()
}

// ParseKey reads a key: a number, hexadecimal after 0x and else decimal, or a
// name. The error wraps ErrKey.
func ParseKey(s string) (Key, error) {
	base, digits := 10, s
	if len(s) > 2 && (s[:2] == "0x" || s[:2] == "0X") {
		base, digits = 16, s[2:]
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if err == nil {
		if n == 0 || n > MaxKey {
			return 0, fmt.Errorf("%w %s: want 1 to %d, or 0x01 to %#x", ErrKey, s, MaxKey, MaxKey)
		}
		return Key(n), nil
	}
	var names []string
	for _, n := range Known() {
		if n.Name == s {
			return n.Key, nil
		}
		names = append(names, n.Name)
	}
	return 0, fmt.Errorf("%w %q: want a number or a name%s", ErrKey, s, spelling.Hint(s, names))
}
