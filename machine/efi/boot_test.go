package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/internal/oracle"
)

// memory are variables in memory; from a change on, when it is 0, they fail.
type memory struct {
	values map[Name]string
	left   int
}

var errCut = errors.New("power cut")

func (m *memory) change() error {
	if m.left == 0 {
		return errCut
	}
	m.left--
	return nil
}

func (m *memory) List() ([]Name, error) {
	return slices.SortedFunc(maps.Keys(m.values), func(a, b Name) int { return strings.Compare(a.String(), b.String()) }), nil
}

func (m *memory) Read(n Name) (uint32, []byte, error) {
	value, ok := m.values[n]
	if !ok {
		return 0, nil, fs.ErrNotExist
	}
	return Persistent, []byte(value), nil
}

func (m *memory) Write(n Name, _ uint32, value []byte) error {
	if m.values[n] == string(value) {
		return nil
	}
	err := m.change()
	if err == nil {
		m.values[n] = string(value)
	}
	return err
}

func (m *memory) Delete(n Name) error {
	if _, ok := m.values[n]; !ok {
		return fs.ErrNotExist
	}
	err := m.change()
	if err == nil {
		delete(m.values, n)
	}
	return err
}

// String says what there is: BootOrder, and the names and partitions of entries.
func (m *memory) String() string {
	var b strings.Builder
	order, ok := m.values[bootOrder()]
	if !ok {
		b.WriteString("none")
	}
	for ; len(order) > 1; order = order[2:] {
		fmt.Fprintf(&b, "%X ", binary.LittleEndian.Uint16([]byte(order)))
	}
	names, _ := m.List()
	for _, n := range names {
		number, ok := bootNumber(n)
		if !ok {
			continue
		}
		what := "?"
		if o, err := DecodeLoadOption([]byte(m.values[n])); err == nil {
			h, _ := o.Paths[0][0].HardDrive()
			what = o.Description + ":" + h.ID.String()[:1]
		}
		fmt.Fprintf(&b, "| %X %s ", number, what)
	}
	return strings.TrimSpace(b.String())
}

// setOrder makes BootOrder.
func (m *memory) setOrder(numbers ...uint16) {
	var b []byte
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint16(b, n)
	}
	m.values[bootOrder()] = string(b)
}

// machine is one with entries of others and of ours, on partitions A, B and C.
func machine(t *testing.T) *memory {
	m := &memory{map[Name]string{}, -1}
	set := func(number uint16, value []byte) { m.values[bootName(number)] = string(value) }
	set(0, bootOption(t, "Other OS", drive(1, idC), "EFI/other/loader.efi")) // of others, and gone
	set(1, bootOption(t, "kiln", drive(1, idB), loader))
	set(2, bootOption(t, "kiln", drive(1, idC), loader))
	set(3, []byte("no entry"))
	set(4, append(bootOption(t, "kiln", drive(1, idC), loader), "data"...))
	set(0xa, bootOption(t, "kiln too", drive(1, idC), loader))
	m.values[Name{"Boot00b0", GlobalVendor}] = string(bootOption(t, "kiln", drive(1, idC), loader))
	m.values[Name{"BootNext", GlobalVendor}] = "\x02\x00"
	m.setOrder(3, 0, 2, 0xb0, 1, 7, 4)
	return m
}

const others = "| 0 Other OS:c "

func TestRegister(t *testing.T) {
	ours := Entry{"kiln", drive(1, idA), loader, []uuid.UUID{uuid.MustParse(idA), uuid.MustParse(idB)}}
	unknown := ours
	unknown.Present = nil
	moved := ours
	moved.Partition.ID = uuid.MustParse(idB)
	moved.Partition.Start++
	for _, c := range []struct {
		name    string
		prepare func(m *memory)
		entry   Entry
		number  uint16
		want    string
	}{
		{"no variables", func(m *memory) { clear(m.values) }, ours, 0, "0 | 0 kiln:3"},
		{"number of a stale one", func(*memory) {}, ours, 2,
			"2 3 0 B0 1 7 4 | 0 Other OS:c | 1 kiln:8 | 2 kiln:3 | 3 ? | 4 kiln:c | A kiln too:c | B0 kiln:c"},
		{"disks are not known", func(*memory) {}, unknown, 5,
			"5 3 0 2 B0 1 7 4 | 0 Other OS:c | 1 kiln:8 | 2 kiln:c | 3 ? | 4 kiln:c | 5 kiln:3 | A kiln too:c | B0 kiln:c"},
		{"same partition", func(*memory) {}, moved, 1,
			"1 3 0 B0 7 4 | 0 Other OS:c | 1 kiln:8 | 3 ? | 4 kiln:c | A kiln too:c | B0 kiln:c"},
		{"several of the same partition", func(m *memory) {
			m.values[bootName(6)], m.values[bootName(8)] = m.values[bootName(1)], m.values[bootName(1)]
			m.setOrder(0, 8, 1, 8)
		}, moved, 8, "8 0 | 0 Other OS:c | 3 ? | 4 kiln:c | 8 kiln:8 | A kiln too:c | B0 kiln:c"},
		{"no order", func(m *memory) { delete(m.values, bootOrder()) }, moved, 1,
			"1 | 0 Other OS:c | 1 kiln:8 | 3 ? | 4 kiln:c | A kiln too:c | B0 kiln:c"},
		{"first free one", func(m *memory) {
			clear(m.values)
			m.values[bootName(1)] = "of somebody"
			m.setOrder(0, 2)
		}, ours, 3, "3 0 2 | 1 ? | 3 kiln:3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machine(t)
			c.prepare(m)
			before := maps.Clone(m.values)
			for _, changes := range []int{-1, 0} { // the second time none
				m.left = changes
				number, err := register(m, c.entry)
				if err != nil || number != c.number || m.String() != c.want {
					t.Fatalf("%X, %v\n got %s\nwant %s", number, err, m, c.want)
				}
			}
			for n, value := range before {
				if o, _ := DecodeLoadOption([]byte(value)); n != bootOrder() && (o == nil || o.Description != "kiln") && m.values[n] != value {
					t.Errorf("%s of others is changed", n)
				}
			}
		})
	}
}

// Wherever it is cut, the firmware boots what it booted before or the new entry,
// and doing it again ends as if it had not been cut.
func TestRegisterCut(t *testing.T) {
	e := Entry{"kiln", drive(1, idA), loader, []uuid.UUID{uuid.MustParse(idA)}}
	whole := machine(t)
	if _, err := register(whole, e); err != nil {
		t.Fatal(err)
	}
	cuts := 0
	for ; ; cuts++ {
		m := machine(t)
		m.left = cuts
		_, err := register(m, e)
		if err == nil {
			break
		}
		if !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		first := binary.LittleEndian.Uint16([]byte(m.values[bootOrder()]))
		if o, _ := DecodeLoadOption([]byte(m.values[bootName(first)])); first != 3 && (o == nil || o.Paths[0][0].Data[20] != 0x37) {
			t.Errorf("cut after %d changes: %s", cuts, m)
		}
		m.left = -1
		if _, err := register(m, e); err != nil || m.String() != whole.String() {
			t.Errorf("again after %d changes: %v\n got %s\nwant %s", cuts, err, m, whole)
		}
	}
	if cuts != 3 { // an entry, the order, one that is stale
		t.Errorf("%d changes, want 3", cuts)
	}
}

func TestUnregister(t *testing.T) {
	m := machine(t)
	e := Entry{Description: "kiln", Partition: drive(1, idB), Present: []uuid.UUID{}}
	const want = "3 0 2 B0 7 4 " + others + "| 2 kiln:c | 3 ? | 4 kiln:c | A kiln too:c | B0 kiln:c"
	for range 2 {
		if err := unregister(m, e); err != nil || m.String() != want {
			t.Errorf("%v\n got %s\nwant %s", err, m, want)
		}
		m.left = 0
	}
	m = &memory{map[Name]string{}, -1}
	e.Path = loader
	if _, err := register(m, e); err != nil {
		t.Fatal(err)
	}
	if err := unregister(m, e); err != nil || len(m.values) != 0 {
		t.Errorf("the only entry: %v, %v", m.values, err)
	}
}

func TestRegisterErrors(t *testing.T) {
	m := machine(t)
	m.left = 0
	good := Entry{"kiln", drive(1, idA), loader, nil}
	for want, change := range map[string]func(*Entry){
		`invalid EFI variable: a boot entry "" of the partition ` + idA + `, want a description and the partition's GUID`:                              func(e *Entry) { e.Description = "" },
		`invalid EFI variable: a boot entry "kiln" of the partition 00000000-0000-0000-0000-000000000000, want a description and the partition's GUID`: func(e *Entry) { e.Partition.ID = uuid.Nil },
		`invalid EFI variable: "\\a\x00" is no text`: func(e *Entry) { e.Path = "a\x00" },
	} {
		e := good
		change(&e)
		if _, err := register(m, e); !errors.Is(err, ErrInvalid) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	m.values[bootOrder()] = "odd"
	for _, err := range []error{unregister(m, good), func() error { _, err := register(m, good); return err }()} {
		if want := "BootOrder: invalid EFI variable: 3 bytes, want pairs"; !errors.Is(err, ErrInvalid) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	for n := range 1 << 16 {
		m.values[bootName(uint16(n))] = "of somebody"
	}
	m.setOrder(1)
	if _, err := register(m, good); !errors.Is(err, ErrNoRoom) || err.Error() != "no room for EFI variables: all 65536 boot entries are in use" {
		t.Errorf("got %v", err)
	}
}

// efibootmgr reads our entries, and we its.
func TestEFIBootMgr(t *testing.T) {
	tool := oracle.Tool(t, "efibootmgr")
	dir := t.TempDir()
	v := Directory(dir)
	for number, value := range map[uint16][]byte{7: bootOption(t, "Other OS", drive(3, idC), "EFI/other/loader.efi"), 8: bootOption(t, "kiln", drive(1, idC), loader)} {
		if err := v.Write(bootName(number), Persistent, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Write(bootOrder(), Persistent, []byte{8, 0, 7, 0}); err != nil {
		t.Fatal(err)
	}
	e := Entry{"kiln", drive(1, idA), loader, nil}
	if number, err := Register(v, e); err != nil || number != 0 {
		t.Fatal(number, err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	run := func(args ...string) string {
		t.Helper()
		c := exec.Command(tool, args...)
		c.Env = append(c.Environ(), "EFIVARFS_PATH="+dir+"/")
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("efibootmgr %s: %v\n%s", args, err, out)
		}
		return string(out)
	}
	const (
		entry = "Boot0000* kiln\tHD(1,GPT," + idA + `,0x800,0x80000)/File(\EFI\BOOT\BOOTX64.EFI)`
		other = "Boot0007* Other OS\tHD(3,GPT," + idC + `,0x800,0x80000)/File(\EFI\other\loader.efi)`
		stale = "Boot0008* kiln\tHD(1,GPT," + idC + `,0x800,0x80000)/File(\EFI\BOOT\BOOTX64.EFI)`
	)
	if got, want := run("-v"), "BootOrder: 0000,0008,0007\n"+entry+"\n"+other+"\n"+stale+"\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	run("--bootorder", "0007,0008,0000")
	run("--inactive", "--bootnum", "0000")
	e.Present = []uuid.UUID{e.Partition.ID}
	if number, err := Register(v, e); err != nil || number != 0 {
		t.Fatal(number, err)
	}
	if got, want := run("-v"), "BootOrder: 0000,0007\n"+entry+"\n"+other+"\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if err := Unregister(v, e); err != nil {
		t.Fatal(err)
	}
	if got, want := run("-v"), "BootOrder: 0007\n"+other+"\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
