package blockdev

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestSelectors(t *testing.T) {
	h := server(t)
	devices, err := h.List()
	if err != nil {
		t.Fatal(err)
	}
	for expr, want := range map[string]string{
		`size>=10GB && transport=="nvme" && !removable`:    "nvme0n1 nvme10n1",
		`disk.size > 10u * GB && disk.transport == 'nvme'`: "nvme0n1 nvme10n1",
		`disk.size >= 120u * GB && disk.size <= 1u * TB`:   "nvme0n1",
		`size == 500GB`: "nvme0n1",
		`size == 500000MB || size == 0.5 TB && size != 1`: "nvme0n1",
		`size < 16GiB && !readonly`:                       "loop2 mmcblk0 sde",
		`size < 2 * 5 * GB + `:                            "ERROR",
		`size <= 2*50MiB`:                                 "loop2",
		`size > GB && size < 11kB * 1000000`:              "sde",
		`size == 16000000000`:                             "mmcblk0",
		`rotational`:                                      "sda",
		`rotational == true && removable != true`:         "sda",
		`removable`:                                       "sdb",
		`readonly != false`:                               "xvda",
		`!(rotational || removable || readonly) && !!(name == "vda")`: "vda",
		`name == "sda" || name == "sdb" && name == "sdc"`:             "sda",
		`(name == "sda" || name == "sdb") && removable`:               "sdb",
		`model =~ "Samsung*980*" && serial != "S5GX999"`:              "nvme0n1",
		`model =~ "DG401?"`:                                               "mmcblk0",
		`model =~ "DG401"`:                                                "",
		`wwn == "eui.0025385b11"`:                                         "nvme0n1",
		`disk.wwid.startsWith("naa.")`:                                    "sda",
		`serial.endsWith('1') && model.contains(" ")`:                     "sdb",
		`sectorsize == 4096 || disk.sector_size == 4KiB`:                  "nvme10n1",
		`by-id == "ata-ST4000DM004-2CV1_ZFN12345"`:                        "sda",
		`by-id =~ "wwn-*"`:                                                "sda",
		`by_id != "wwn-0x5000c500b1234567" && transport == "sata"`:        "",
		`'` + h.Dev + `/disk/by-path/pci-0000:00:1f.2-ata-1' in symlinks`: "sda",
		`"wwn-0x5000c500b1234567" in disk.by_id`:                          "sda",
		`links.contains("by-path")`:                                       "sda",
		`buspath =~ "/pci0000:00/0000:00:1f.2/*"`:                         "sda",
		`bus_path=="/pci0000:00/0000:00:02.0/virtio1/"`:                   "vda",
		`dev_path == "` + h.Dev + `/vda"`:                                 "vda",
		`transport =~ "*" && name =~ "sd?"`:                               "sda sdb sdc sdd sde",
		`transport == "loop"`:                                             "loop2",
	} {
		s, err := ParseSelector(expr)
		if want == "ERROR" {
			if err == nil {
				t.Errorf("%s: no error", expr)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		var got []string
		for _, d := range Candidates(devices) {
			if s.Match(d) {
				got = append(got, d.Name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %v, want %s", expr, got, want)
		}
	}
}

func TestSyntaxErrors(t *testing.T) {
	const fields = "name, path, size, sectorsize, model, serial, wwn, transport, rotational, removable, readonly, by-id, links, buspath"
	for _, c := range []struct {
		expr   string
		column int
		want   string
	}{
		{``, 1, "it ends here, want a field: " + fields},
		{`size >=`, 8, `it ends here, want a number, as "size" is one`},
		{`siez >= 3`, 1, `unknown field "siez"; did you mean "size"?`},
		{`disk.`, 6, "it ends here, want a field: " + fields},
		{`disk == 3`, 6, `got "==", want .`},
		{`size`, 1, `"size" is not true or false; want ==, !=, <, <=, > or >= behind it`},
		{`model && size > 3`, 1, `"model" is not true or false; want ==, !=, =~, .startsWith, .endsWith or .contains behind it`},
		{`size == "10GB"`, 9, `got "10GB", want a number, as "size" is one`},
		{`size == 10GX`, 11, `unknown unit "GX", want one of KB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB`},
		{`size == 1.2.3`, 9, `"1.2.3" is not a number`},
		{`size == 10 20`, 12, `got "20", want &&, || or the end`},
		{`size == 9999999PB`, 9, `the number is too large`},
		{`size =~ 10`, 6, `"size" cannot be compared with =~, want ==, !=, <, <=, > or >=`},
		{`model < "a"`, 7, `"model" cannot be compared with <, want ==, !=, =~, .startsWith, .endsWith or .contains`},
		{`model == nvme`, 10, `got "nvme", want a string in quotes, as "model" is text`},
		{`model = "nvme"`, 7, `unexpected '=', want a field, a value or an operator`},
		{`model == "nvme`, 10, `the string that begins here has no closing "`},
		{`model "x"`, 7, `got "x", want ==, !=, =~, .startsWith, .endsWith or .contains`},
		{`removable > true`, 11, `"removable" cannot be compared with >, want == or !=, or nothing`},
		{`removable == 1`, 14, `got "1", want true or false`},
		{`"x" == model`, 5, `got "==", want in, as in "text" in links; comparisons begin with the field`},
		{`"x" in model`, 8, `"model" is not a list, want by-id or links`},
		{`model.matches("x")`, 7, `"model" has no function "matches", want ==, !=, =~, .startsWith, .endsWith or .contains`},
		{`size.contains("x")`, 6, `"size" has no function "contains", want ==, !=, <, <=, > or >=`},
		{`model.contains(x)`, 16, `got "x", want a string in quotes`},
		{`model.contains("x"`, 19, `it ends here, want )`},
		{`(removable`, 11, `it ends here, want )`},
		{`removable)`, 10, `got ")", want &&, || or the end`},
		{`removable &&`, 13, "it ends here, want a field: " + fields},
		{`removable & rotational`, 11, `unexpected '&', want a field, a value or an operator`},
		{"removable\n", 1, `want one line of UTF-8 text`},
		{`model == "é" && ö`, 17, `unexpected 'ö', want a field, a value or an operator`},
		{strings.Repeat("!", 100) + "removable", 66, "more than 64 parentheses and negations within each other"},
		{strings.Repeat("(", 100) + "removable", 66, "more than 64 parentheses and negations within each other"},
		{strings.Repeat(" ", 5000), 1, "it has 5000 bytes, at most 4096 are read"},
	} {
		_, err := ParseSelector(c.expr)
		var syntax *SyntaxError
		if !errors.As(err, &syntax) {
			t.Errorf("%s: got %v", c.expr, err)
			continue
		}
		if syntax.Column != c.column || syntax.Detail != c.want {
			t.Errorf("%s: got column %d, %s\nwant column %d, %s", c.expr, syntax.Column, syntax.Detail, c.column, c.want)
		}
	}
	_, err := ParseSelector(`size>=10GB && siez>3`)
	if want := "disk selector, column 15: unknown field \"siez\"; did you mean \"size\"?\n  size>=10GB && siez>3\n                ^"; err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func mustParse(t *testing.T, expr string) *Selector {
	t.Helper()
	s, err := ParseSelector(expr)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSelectOne(t *testing.T) {
	h := server(t)
	d, err := h.Select(mustParse(t, `size<1TB && transport=="nvme"`))
	if err != nil || d.Name != "nvme0n1" {
		t.Errorf("got %v, %v", d, err)
	}
	_, err = h.Select(mustParse(t, `transport == "nvme"`))
	want := `more than one disk matches transport == "nvme"; add to it, for example && name=="nvme0n1":
  DEV/nvme0n1 size=500GB transport="nvme" model="Samsung SSD 980 PRO" serial="S5GX123" wwn="eui.0025385b11"
  DEV/nvme10n1 size=2TB transport="nvme" model="Samsung SSD 980 PRO" serial="S5GX999"`
	if !errors.Is(err, ErrAmbiguous) || strings.ReplaceAll(err.Error(), h.Dev, "DEV") != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	_, err = Select([]*Device{h.list()["sda"], h.list()["sdb"]}, mustParse(t, ` size > 5TB `))
	want = `no disk matches size > 5TB; there are:
  DEV/sda size=4TB transport="sata" model="ST4000DM004-2CV1" serial="ZFN12345" wwn="naa.5000c500b1234567" rotational
  DEV/sdb size=32GB transport="usb" model="Ultra Fit" serial="4C530001" removable`
	if !errors.Is(err, ErrNoMatch) || strings.ReplaceAll(err.Error(), h.Dev, "DEV") != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	_, err = newTree(t).Select(mustParse(t, "removable"))
	if !errors.Is(err, ErrNoMatch) || err.Error() != "no disk matches removable: there are no disks" {
		t.Errorf("got %v", err)
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"**", "abc", true}, {"a*c", "abbc", true}, {"a*c", "abcd", false},
		{"*a*b*", "xxaxxbxx", true}, {"?", "", false}, {"a?c", "abc", true}, {"*/ab", "/x/aab/ab", true}, {"[a]", "a", false}, {"[a]", "[a]", true},
	} {
		if got := glob(c.pattern, c.s); got != c.want {
			t.Errorf("glob(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
	// Backtracking is bounded: this would not end otherwise.
	if glob(strings.Repeat("*a", 500)+"b", strings.Repeat("a", 4000)) {
		t.Error("matches")
	}
}

// FuzzSelector: no panic, errors point into the text, and what is parsed
// matches the same way each time.
func FuzzSelector(f *testing.F) {
	for _, s := range []string{`size>=10GB && transport=="nvme" && !removable`, `disk.size > 10u * GB`, `'x' in disk.symlinks || (by-id =~ "*?")`,
		`model.startsWith("a")`, `removable == false`, `size < 1.5TiB*`, `((((`, `"`, `disk.`, "\xff"} {
		f.Add(s)
	}
	devices := []*Device{{Name: "sda", Size: 5 * gb, Transport: "sata", Links: []string{"/dev/disk/by-id/x"}}, {}}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSelector(text)
		if err != nil {
			var syntax *SyntaxError
			if !errors.As(err, &syntax) || syntax.Column < 1 || syntax.Column > len(text)+1 || syntax.Detail == "" {
				t.Fatalf("%q: %v", text, err)
			}
			_ = err.Error()
			return
		}
		again, err := ParseSelector("!(" + s.String() + ")")
		if err != nil {
			if strings.Contains(err.Error(), "more than") || len(text)+3 > maxSelector {
				return
			}
			t.Fatalf("%q: %v", text, err)
		}
		if slices.ContainsFunc(devices, func(d *Device) bool { return s.Match(d) == again.Match(d) }) {
			t.Fatalf("%q and its negation are the same", text)
		}
	})
}
