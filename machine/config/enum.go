package config

// VolumeName is the label of a partition.
type VolumeName string

// Values of VolumeName.
const (
	Ephemeral VolumeName = "EPHEMERAL"
)

// Values returns what it may be.
func (VolumeName) Values() []string {
	return []string{string(Ephemeral)}
}

// DamagedPolicy is what becomes of a damaged file system.
type DamagedPolicy string

// Values of DamagedPolicy.
const (
	DamagedKeep     DamagedPolicy = "keep"
	DamagedRecreate DamagedPolicy = "recreate"
)

// Values returns what it may be.
func (DamagedPolicy) Values() []string {
	return []string{string(DamagedKeep), string(DamagedRecreate)}
}

// DHCPClientID is how a DHCP client identifies itself.
type DHCPClientID string

// Values of DHCPClientID.
const (
	ClientIDMAC  DHCPClientID = "mac"
	ClientIDDUID DHCPClientID = "duid"
)

// Values returns what it may be.
func (DHCPClientID) Values() []string {
	return []string{string(ClientIDMAC), string(ClientIDDUID)}
}

// BondMode is how the members of a bond are used.
type BondMode string

// Values of BondMode.
const (
	BalanceRR    BondMode = "balance-rr"
	ActiveBackup BondMode = "active-backup"
	BalanceXOR   BondMode = "balance-xor"
	Broadcast    BondMode = "broadcast"
	LACP         BondMode = "802.3ad"
	BalanceTLB   BondMode = "balance-tlb"
	BalanceALB   BondMode = "balance-alb"
)

// Values returns what it may be.
func (BondMode) Values() []string {
	return []string{string(BalanceRR), string(ActiveBackup), string(BalanceXOR), string(Broadcast), string(LACP), string(BalanceTLB), string(BalanceALB)}
}

// LACPRate is how often LACPDUs are asked for.
type LACPRate string

// Values of LACPRate.
const (
	LACPSlow LACPRate = "slow"
	LACPFast LACPRate = "fast"
)

// Values returns what it may be.
func (LACPRate) Values() []string {
	return []string{string(LACPSlow), string(LACPFast)}
}

// TransmitHash is what decides the member that a packet takes.
type TransmitHash string

// Values of TransmitHash.
const (
	HashLayer2  TransmitHash = "layer2"
	HashLayer23 TransmitHash = "layer2+3"
	HashLayer34 TransmitHash = "layer3+4"
	HashEncap23 TransmitHash = "encap2+3"
	HashEncap34 TransmitHash = "encap3+4"
	HashVLANMAC TransmitHash = "vlan+srcmac"
)

// Values returns what it may be.
func (TransmitHash) Values() []string {
	return []string{string(HashLayer2), string(HashLayer23), string(HashLayer34), string(HashEncap23), string(HashEncap34), string(HashVLANMAC)}
}

// AggregatorRule is how a bond selects its aggregator.
type AggregatorRule string

// Values of AggregatorRule.
const (
	SelectStable    AggregatorRule = "stable"
	SelectBandwidth AggregatorRule = "bandwidth"
	SelectCount     AggregatorRule = "count"
)

// Values returns what it may be.
func (AggregatorRule) Values() []string {
	return []string{string(SelectStable), string(SelectBandwidth), string(SelectCount)}
}

// VLANProtocol is the kind of a VLAN's tags.
type VLANProtocol string

// Values of VLANProtocol.
const (
	Tag8021Q  VLANProtocol = "802.1q"
	Tag8021AD VLANProtocol = "802.1ad"
)

// Values returns what it may be.
func (VLANProtocol) Values() []string {
	return []string{string(Tag8021Q), string(Tag8021AD)}
}

// FileEncoding is how the content of a File is written.
type FileEncoding string

// Values of FileEncoding.
const (
	EncodingText   FileEncoding = "text"
	EncodingBase64 FileEncoding = "base64"
)

// Values returns what it may be.
func (FileEncoding) Values() []string {
	return []string{string(EncodingText), string(EncodingBase64)}
}

// PullPolicy is when an image is asked for.
type PullPolicy string

// Values of PullPolicy.
const (
	PullMissing PullPolicy = "missing"
	PullAlways  PullPolicy = "always"
	PullNever   PullPolicy = "never"
)

// Values returns what it may be.
func (PullPolicy) Values() []string {
	return []string{string(PullMissing), string(PullAlways), string(PullNever)}
}

// ServiceNetwork is the network of a service.
type ServiceNetwork string

// Values of ServiceNetwork.
const (
	NetworkHost   ServiceNetwork = "host"
	NetworkBridge ServiceNetwork = "bridge"
	NetworkNone   ServiceNetwork = "none"
)

// Values returns what it may be.
func (ServiceNetwork) Values() []string {
	return []string{string(NetworkHost), string(NetworkBridge), string(NetworkNone)}
}

// RestartPolicy is when a service is started again.
type RestartPolicy string

// Values of RestartPolicy.
const (
	RestartAlways    RestartPolicy = "always"
	RestartOnFailure RestartPolicy = "on-failure"
	RestartNever     RestartPolicy = "never"
)

// Values returns what it may be.
func (RestartPolicy) Values() []string {
	return []string{string(RestartAlways), string(RestartOnFailure), string(RestartNever)}
}

// MountType is what a Mount is of.
type MountType string

// Values of MountType.
const (
	MountBind  MountType = "bind"
	MountTmpfs MountType = "tmpfs"
)

// Values returns what it may be.
func (MountType) Values() []string {
	return []string{string(MountBind), string(MountTmpfs)}
}

// PortProtocol is the protocol of a Port.
type PortProtocol string

// Values of PortProtocol.
const (
	TCP PortProtocol = "tcp"
	UDP PortProtocol = "udp"
)

// Values returns what it may be.
func (PortProtocol) Values() []string {
	return []string{string(TCP), string(UDP)}
}

// TaintEffect is what a Taint does.
type TaintEffect string

// Values of TaintEffect.
const (
	NoSchedule       TaintEffect = "NoSchedule"
	PreferNoSchedule TaintEffect = "PreferNoSchedule"
	NoExecute        TaintEffect = "NoExecute"
)

// Values returns what it may be.
func (TaintEffect) Values() []string {
	return []string{string(NoSchedule), string(PreferNoSchedule), string(NoExecute)}
}
