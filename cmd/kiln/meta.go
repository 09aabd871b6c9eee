package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/machine/meta"
)

// maxShown is how many bytes of a value 'kiln meta list' shows.
const maxShown = 60

func newMeta(*globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "meta",
		Short: "Read and change the values in the META partition",
		Long: `Read and change the values that a node keeps in the partition META, beside its
file systems. The format is that of Talos Linux.

A key is a number from 1 to 255, decimal or hexadecimal (10, 0x0a), or a name:

` + knownKeys() + `
Keys from 0x80 to 0xef are free for anything.

Images may be in any of the formats that 'kiln convert' reads; only raw ones and
block devices can be changed. A partition META alone, or a file of 1 MiB, is one
as well.`,
		Example: `  kiln meta list metal.raw
  kiln meta set metal.raw 0x80=rack-7 --file metal-network=network.yaml
  kiln meta get /dev/sdb machine-token`,
	}
	c.AddCommand(newMetaGet(), newMetaSet(), newMetaList(), newMetaDelete())
	return c
}

func knownKeys() string {
	var b strings.Builder
	for _, n := range meta.Known() {
		fmt.Fprintf(&b, "  %s  %s\n", n.Key.Hex(), n.Name)
	}
	return b.String()
}

func newMetaGet() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "get IMAGE KEY",
		Short: "Print a value",
		Long: `Print a value as it is, without a newline after it. If there is none the exit code
is 3.`,
		Example: "  kiln meta get metal.qcow2 metal-network",
		Args:    args(2, "an image and a key"),
		RunE: func(c *cobra.Command, args []string) error {
			key, err := parseKey(args[1])
			if err != nil {
				return err
			}
			list, err := readMeta(c, args[0])
			if err != nil {
				return err
			}
			value, ok := list.values[key]
			if !ok {
				return notSet(args[0], key)
			}
			if asJSON {
				return printJSON(c, newMetaValue(key, value))
			}
			_, err = c.OutOrStdout().Write(value)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newMetaList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list IMAGE",
		Short:   "List the values",
		Example: "  kiln meta list --json metal.raw | jq -r '.values[] | select(.name == \"user-1\") | .value'",
		Args:    args(1, "one image"),
		RunE: func(c *cobra.Command, args []string) error {
			list, err := readMeta(c, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c, list)
			}
			return list.writeText(c.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON; values that are not UTF-8 are in Base64")
	return c
}

func newMetaSet() *cobra.Command {
	var asJSON bool
	var files []string
	c := &cobra.Command{
		Use:   "set IMAGE KEY=VALUE…",
		Short: "Set values",
		Long: `Set values, all at once: if this is cut short, by a power failure too, META has
the values of before or the new ones.`,
		Example: `  kiln meta set metal.raw user-1=rack-7 0x81=blue
  kiln meta set /dev/sdb --file metal-network=network.yaml`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) == 1 && len(files) == 0 {
				return usageError{fmt.Errorf("%s takes an image and KEY=VALUE, or --file KEY=FILE; see '%s --help'", c.CommandPath(), c.CommandPath())}
			}
			set := meta.Values{}
			put := func(text string, value func(string) ([]byte, error)) error {
				name, v, ok := strings.Cut(text, "=")
				if !ok {
					return usageError{fmt.Errorf("%q has no '=', want KEY=VALUE", text)}
				}
				key, err := parseKey(name)
				if err != nil {
					return err
				}
				if _, twice := set[key]; twice {
					return usageError{fmt.Errorf("key %v is set twice; leave one out", key)}
				}
				set[key], err = value(v)
				return err
			}
			for _, a := range args[1:] {
				if err := put(a, func(v string) ([]byte, error) { return []byte(v), nil }); err != nil {
					return err
				}
			}
			for _, f := range files {
				if err := put(f, func(name string) ([]byte, error) { return readValue(c, name) }); err != nil {
					return err
				}
			}
			return changeMeta(c, args[0], asJSON, false, func(v meta.Values) error {
				for k, value := range set {
					v[k] = value
				}
				return nil
			})
		},
	}
	c.Flags().StringArrayVar(&files, "file", nil, "KEY=FILE: set KEY to what is in FILE; - is standard input (repeatable)")
	c.Flags().BoolVar(&asJSON, "json", false, "print all values afterwards as JSON")
	return c
}

func newMetaDelete() *cobra.Command {
	var asJSON, all bool
	c := &cobra.Command{
		Use:     "delete IMAGE KEY…",
		Short:   "Delete values",
		Long:    `Delete values, all at once. If one of them is not there none is deleted, and the exit code is 3.`,
		Example: "  kiln meta delete metal.raw user-1 0x81\n  kiln meta delete --all /dev/sdb",
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 || (len(args) == 1) != all {
				return usageError{fmt.Errorf("%s takes an image and keys, or --all; see '%s --help'", c.CommandPath(), c.CommandPath())}
			}
			var keys []meta.Key
			for _, a := range args[1:] {
				key, err := parseKey(a)
				if err != nil {
					return err
				}
				keys = append(keys, key)
			}
			return changeMeta(c, args[0], asJSON, all, func(v meta.Values) error {
				if all {
					clear(v)
				}
				for _, k := range keys {
					if _, ok := v[k]; !ok {
						return notSet(args[0], k)
					}
				}
				for _, k := range keys {
					delete(v, k)
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "delete all values, also those of a partition META that is damaged")
	c.Flags().BoolVar(&asJSON, "json", false, "print all values afterwards as JSON")
	return c
}

// notSetError is for a key that has no value: an input that does not exist.
type notSetError struct{ error }

func (notSetError) Unwrap() error { return fs.ErrNotExist }

func notSet(name string, key meta.Key) error {
	return notSetError{fmt.Errorf("%s: META has no value of key %v; 'kiln meta list %s' shows those it has", name, key, name)}
}

func parseKey(s string) (meta.Key, error) {
	key, err := meta.ParseKey(s)
	if err != nil {
		return 0, usageError{err}
	}
	return key, nil
}

// readValue reads a value from a file, but not more than could be one.
func readValue(c *cobra.Command, name string) ([]byte, error) {
	in := c.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, meta.MaxBytes+1))
	if err == nil && len(b) > meta.MaxBytes {
		err = usageError{fmt.Errorf("%s: it has more than the %d bytes that fit into META", name, meta.MaxBytes)}
	}
	return b, err
}

// metaList is what 'kiln meta list --json' prints.
type metaList struct {
	Image    string      `json:"image"`
	Degraded string      `json:"degraded,omitempty"`
	Values   []metaValue `json:"values"`

	values meta.Values
}

// metaValue is a value: as text, or in Base64 if it is none.
type metaValue struct {
	Key    string  `json:"key"`
	Name   string  `json:"name,omitempty"`
	Size   int     `json:"size"`
	Value  *string `json:"value,omitempty"`
	Base64 []byte  `json:"base64,omitempty"`
}

func newMetaValue(key meta.Key, value []byte) metaValue {
	v := metaValue{Key: key.Hex(), Name: key.Name(), Size: len(value)}
	if utf8.Valid(value) {
		s := string(value)
		v.Value = &s
	} else {
		v.Base64 = value
	}
	return v
}

func listOf(name string, found *meta.Contents) *metaList {
	l := &metaList{Image: name, Values: []metaValue{}, values: found.Values}
	if found.Degraded != nil {
		l.Degraded = found.Degraded.Error()
	}
	for _, k := range found.Values.Keys() {
		l.Values = append(l.Values, newMetaValue(k, found.Values[k]))
	}
	return l
}

func (l *metaList) writeText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KEY\tNAME\tBYTES\tVALUE")
	for _, k := range l.values.Keys() {
		value, more := l.values[k], ""
		if len(value) > maxShown {
			value, more = value[:maxShown], "…"
		}
		name := k.Name()
		if name == "" {
			name = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s%s\n", k.Hex(), name, len(l.values[k]), strconv.Quote(string(value)), more)
	}
	return t.Flush()
}

// readMeta reads the values in an image or on a device.
func readMeta(c *cobra.Command, name string) (*metaList, error) {
	disk, err := openContainer(name)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	place, err := meta.Locate(disk, disk.Size())
	if err != nil {
		return nil, refused(name, err)
	}
	found, err := meta.Read(io.NewSectionReader(disk, place.Offset, place.Size), place.Size)
	if err != nil {
		return nil, refused(name, fmt.Errorf("%w; %s", err, damagedHelp(name, place)))
	}
	l := listOf(name, found)
	if l.Degraded != "" {
		fmt.Fprintf(c.ErrOrStderr(), "kiln: %s: %s; 'kiln meta set' repairs it\n", name, l.Degraded)
	}
	return l, nil
}

// damagedHelp says what to do about META without a whole copy. What only has the
// size of META may be something else, and is not overwritten.
func damagedHelp(name string, place meta.Place) string {
	if place.Bare {
		return "if it is META, fill it with zeros to begin anew"
	}
	return fmt.Sprintf("'kiln meta delete --all %s' begins anew, without values", name)
}

// changeMeta changes the values in a raw image or on a device. With anew, values
// that cannot be read do not matter.
func changeMeta(c *cobra.Command, name string, asJSON, anew bool, change func(meta.Values) error) error {
	disk, err := openContainer(name)
	if err != nil {
		return err
	}
	disk.Close()
	if disk.Format != "raw" {
		return refused(name, fmt.Errorf("it is %s, and values can be changed in raw images and on devices only; 'kiln convert %s --format raw --output FILE' makes one", disk.Format, name))
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := lockFile(c, f); err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	place, err := meta.Locate(f, size)
	if err != nil {
		return refused(name, err)
	}
	part := meta.Section(uncached{f, place}, place.Offset, place.Size)
	found, err := meta.Read(part, place.Size)
	if errors.Is(err, meta.ErrDamaged) && anew && !place.Bare {
		found, err = &meta.Contents{Values: meta.Values{}}, nil
	}
	if err != nil {
		return refused(name, fmt.Errorf("%w; nothing was changed; %s", err, damagedHelp(name, place)))
	}
	if err := change(found.Values); err != nil {
		return err
	}
	if err := meta.Write(part, found.Values); err != nil {
		if errors.Is(err, meta.ErrTooLarge) {
			return usageError{fmt.Errorf("%s: %w; nothing was changed", name, err)}
		}
		return fmt.Errorf("%w: %s: %w", imager.ErrOutput, name, err)
	}
	if asJSON {
		return printJSON(c, listOf(name, &meta.Contents{Values: found.Values}))
	}
	return nil
}

// lockWait is how long others may hold a lock, as udev does for moments.
const lockWait = 2 * time.Second

// lockFile locks f, as systemd's BLOCK_DEVICE_LOCKING asks for, against udev and
// others that change it.
func lockFile(c *cobra.Command, f *os.File) error {
	for start := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		if time.Since(start) > lockWait {
			return refused(f.Name(), errors.New("another program has locked it; try again when that has ended"))
		}
		select {
		case <-c.Context().Done():
			return c.Context().Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// uncached is a file of which a part is read from the medium after it was flushed.
type uncached struct {
	*os.File
	part meta.Place
}

func (u uncached) Sync() error {
	if err := u.File.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(u.Fd()), u.part.Offset, u.part.Size, unix.FADV_DONTNEED)
}
