package idempotencytest

import "testing"

// plainTest is a test that every store must pass.
type plainTest struct {
	name string
	run  func(*testing.T, *fixture)
}

// leaseTest is a test that every store with leases must pass.
type leaseTest struct {
	name string
	run  func(*testing.T, *leaseFixture)
}

// stepTest is a test that every store that keeps steps must pass.
type stepTest struct {
	name string
	run  func(*testing.T, *stepFixture)
}

// storeContract is what [TestStore] asks of every store.
var storeContract = []plainTest{
	// Records
	{"GetOfNothing", testGetOfNothing},
	{"PutThenGet", testPutThenGet},
	{"PutReplaces", testPutReplaces},
	{"PutFillsInTimes", testPutFillsInTimes},
	{"PutRefusesNonsense", testPutRefusesNonsense},
	{"RecordsAreCopies", testRecordsAreCopies},
	{"KeysAreExact", testKeysAreExact},
	{"TenantsNeverMeet", testTenantsNeverMeet},
	{"ExpiredRecordIsAbsent", testExpiredRecordIsAbsent},
	{"CancelledContextIsSeen", testCancelledContextIsSeen},
	{"ConcurrentPutsAndGets", testConcurrentPutsAndGets},

	// Payloads
	{"OddPayloads", testOddPayloads},
	{"LargePayload", testLargePayload},
}

// storeLeaseContract is what [TestStore] asks of a store with leases as well.
var storeLeaseContract = []leaseTest{
	// Claiming
	{"ClaimCompleteReplay", testClaimCompleteReplay},
	{"ClaimInFlight", testClaimInFlight},
	{"ClaimMismatch", testClaimMismatch},
	{"ClaimInProgressHasNoRecord", testClaimInProgressHasNoRecord},
	{"ClaimReleased", testClaimReleased},
	{"ClaimRepeated", testClaimRepeated},
	{"ClaimsOfTenantsNeverMeet", testClaimsOfTenantsNeverMeet},
	{"ClaimAfterExpiry", testClaimAfterExpiry},
	{"ClaimAfterInterruptionExpired", testClaimAfterInterruptionExpired},
	{"ClaimOutlivesExpiry", testClaimOutlivesExpiry},
	{"ClaimsSeeCancelledContext", testClaimsSeeCancelledContext},
	{"PutOverAClaim", testPutOverAClaim},

	// Leases that lapse
	{"ClaimTakesOverLapsedLease", testClaimTakesOverLapsedLease},
	{"ClaimRefusesLapsedLease", testClaimRefusesLapsedLease},
	{"ClaimMismatchOnLapsedLease", testClaimMismatchOnLapsedLease},
	{"TakeOverHasTermsOfItsOwn", testTakeOverHasTermsOfItsOwn},
	{"ReleaseAfterTakeOver", testReleaseAfterTakeOver},
	{"ReleaseAfterLapse", testReleaseAfterLapse},
	{"CompleteAfterLapse", testCompleteAfterLapse},
	{"ExtendAfterLapse", testExtendAfterLapse},
	{"ExtendKeepsTheLease", testExtendKeepsTheLease},

	// Completion and the fencing token
	{"StaleTokenChangesNothing", testStaleTokenChangesNothing},
	{"CompletedRecordIsNotReleased", testCompletedRecordIsNotReleased},
	{"CompleteMayBeRepeated", testCompleteMayBeRepeated},
	{"CompleteKeepsTermsOfTheClaim", testCompleteKeepsTermsOfTheClaim},
	{"CompleteTakesACopy", testCompleteTakesACopy},
	{"Tombstone", testTombstone},

	// Concurrency
	{"ConcurrentClaimsHaveOneWinner", testConcurrentClaimsHaveOneWinner},
	{"ConcurrentTakeOversHaveOne", testConcurrentTakeOversHaveOneWinner},
	{"ConcurrentEndAndTakeOver", testConcurrentEndAndTakeOver},
	{"ConcurrentReleaseLeavesNoErrors", testConcurrentReleases},

	// Waiting
	{"Watch", testWatch},
}

// notInTransactions are the tests that [WithTransactions] leaves out.
var notInTransactions = map[string]bool{
	// Nothing is sent before the commit, and nothing known.
	"MismatchInFlight": true, "WaitTimesOut": true, "ProblemDetails": true,
	"HijackedResponse": true, "ResponseController": true,
	"StreamedResponse": true, "FlushBeforeBody": true, "StreamedPastTheBound": true, "StreamBrokenOff": true,
	// An attempt has no lease; it ends with its transaction.
	"LeaseIsExtended": true, "LeaseKeptToTheEnd": true, "LostLeaseCancelsHandler": true, "LeaseLostAtRelease": true,
	"TakeOver": true, "TakeOverThatFails": true, "InterruptedRefused": true, "WaitTakesOver": true,
	// What is not committed has not happened, and its response is not sent.
	"StoreDownAtCompletion": true, "StoreDownAtRelease": true, "ClaimAnswerLost": true,
	"Watch": true,
}

// stepContract is what [TestStore] asks of a store that keeps steps as well.
var stepContract = []stepTest{
	{"StepSavedIsLoaded", testStepSavedIsLoaded},
	{"StepTakesACopy", testStepTakesACopy},
	{"StepOfTheFirstStays", testStepOfTheFirstStays},
	{"StepsSeeCancelledContext", testStepsSeeCancelledContext},

	// The attempts of one life, and whose they are not
	{"StepIsSeenAfterTakeOver", testStepIsSeenAfterTakeOver},
	{"StepsMoveOnWithTheRecord", testStepsMoveOnWithTheRecord},
	{"StepsEndWithTheRecord", testStepsEndWithTheRecord},
	{"StepsEndWithAPut", testStepsEndWithAPut},
	{"StepsOfAnotherFingerprint", testStepsOfAnotherFingerprint},
	{"StepsOfTenantsAndKeysNeverMeet", testStepsOfTenantsAndKeysNeverMeet},

	// The fencing token
	{"StaleTokenHasNoSteps", testStaleTokenHasNoSteps},
	{"CompletedRecordTakesNoSteps", testCompletedRecordTakesNoSteps},
	{"ReleaseKeepsSteps", testReleaseKeepsSteps},

	// Concurrency
	{"ConcurrentSavesHaveOneWinner", testConcurrentSavesHaveOneWinner},
	{"ConcurrentSaveAndTakeOver", testConcurrentSaveAndTakeOver},
	{"ConcurrentSaveAndRelease", testConcurrentSaveAndRelease},
}

// requestContract is what [TestStore] asks of a store that keeps requests as well.
var requestContract = []leaseTest{
	{"RequestIsRecovered", testRequestIsRecovered},
	{"RequestIsKeptAnew", testRequestIsKeptAnew},
	{"RequestEndsWithCompletion", testRequestEndsWithCompletion},
	{"RequestEndsWithAPut", testRequestEndsWithAPut},
	{"RequestEndsWithRelease", testRequestEndsWithRelease},
	{"RecoveryOfNothing", testRecoveryOfNothing},
	{"RecoveryThatFails", testRecoveryThatFails},
	{"RecoveriesHaveOneWinner", testRecoveriesHaveOneWinner},
}

// contract is what [TestMiddleware] asks over every store.
var contract = []plainTest{
	// What passes through
	{"SafeMethodsPassThrough", testSafeMethodsPassThrough},
	{"OtherMethodsPassThrough", testOtherMethodsPassThrough},
	{"ExcludedRoutesPassThrough", testExcludedRoutesPassThrough},
	{"NoKeyPassesThrough", testNoKeyPassesThrough},
	{"NoOrgPassesThrough", testNoOrgPassesThrough},
	{"RequiredOrg", testRequiredOrg},

	// Keys
	{"RequiredKey", testRequiredKey},
	{"InvalidKeys", testInvalidKeys},
	{"QuotedAndBareAreOneKey", testQuotedAndBareAreOneKey},
	{"TenantsShareNoKeys", testTenantsShareNoKeys},
	{"ScopesShareNoKeys", testScopesShareNoKeys},

	// Requests and their fingerprints
	{"RequestTooLarge", testRequestTooLarge},
	{"RequestBodyReachesHandler", testRequestBodyReachesHandler},
	{"Mismatch", testMismatch},
	{"MismatchInFlight", testMismatchInFlight},
	{"LongFingerprint", testLongFingerprint},

	// Duplicates at the same time
	{"InFlight", testInFlight},
	{"ConcurrentDuplicates", testConcurrentDuplicates},
	{"NestedRequireIsOne", testNestedRequireIsOne},
	{"NestedRequireOfAnotherKey", testNestedRequireOfAnotherKey},
	{"WaitOfAnyStore", testWaitOfAnyStore},

	// Replays
	{"Replay", testReplay},
	{"ReplayOfNothing", testReplayOfNothing},
	{"ReplayHeaderRenamed", testReplayHeaderRenamed},
	{"ReplayCheck", testReplayCheck},
	{"ExpiredRecordRunsAgain", testExpiredRecordRunsAgain},

	// Headers
	{"OuterHeadersAreNotStored", testOuterHeadersAreNotStored},
	{"SecretHeadersAreNotStored", testSecretHeadersAreNotStored},
	{"InformationalResponses", testInformationalResponses},
	{"SecondWriteHeaderIsIgnored", testSecondWriteHeaderIsIgnored},
	{"DeclaredLength", testDeclaredLength},
	{"Trailers", testTrailers},

	// Recording
	{"NothingSentBeforeStored", testNothingSentBeforeStored},
	{"CopyIsRecorded", testCopyIsRecorded},
	{"ReaderFromIsNotReached", testReaderFromIsNotReached},
	{"ResponseController", testResponseController},
	{"GzipInside", testGzipInside},
	{"GzipOutside", testGzipOutside},
	{"ResponseAtTheBound", testResponseAtTheBound},
	{"LargeResponse", testLargeResponse},
	{"HijackedResponse", testHijackedResponse},
	{"WriteAfterReturn", testWriteAfterReturn},

	// Streams
	{"StreamedResponse", testStreamedResponse},
	{"FlushBeforeBody", testFlushBeforeBody},
	{"StreamedPastTheBound", testStreamedPastTheBound},
	{"StreamBrokenOff", testStreamBrokenOff},

	// Runs without an outcome
	{"StatusesThatAreNotStored", testStatusesThatAreNotStored},
	{"PanicReleases", testPanicReleases},
	{"RetriesMeetReleases", testRetriesMeetReleases},

	// Clients that leave
	{"GoneBeforeTheHandler", testGoneBeforeTheHandler},
	{"ClientLeavesMidHandler", testClientLeavesMidHandler},
	{"SilentReturnAfterCancel", testSilentReturnAfterCancel},
	{"DetachedHandler", testDetachedHandler},

	// A store that is down
	{"PlainStoreDown", testPlainStoreDown},

	// Answers and reports
	{"ProblemDetails", testProblemDetails},
	{"ErrorHandler", testErrorHandler},
	{"Events", testEvents},
}

// leaseContract is what [TestMiddleware] asks over a store with leases as well.
var leaseContract = []leaseTest{
	// Leases
	{"LeaseIsExtended", testLeaseIsExtended},
	{"LeaseKeptToTheEnd", testLeaseKeptToTheEnd},
	{"LostLeaseCancelsHandler", testLostLeaseCancelsHandler},

	// Interrupted attempts
	{"TakeOver", testTakeOver},
	{"TakeOverThatFails", testTakeOverThatFails},
	{"InterruptedRefused", testInterruptedRefused},
	{"LeaseLostAtRelease", testLeaseLostAtRelease},

	// Waiting
	{"WaitReplays", testWaitReplays},
	{"WaitTimesOut", testWaitTimesOut},
	{"WaitRunsAfterRelease", testWaitRunsAfterRelease},
	{"WaitTakesOver", testWaitTakesOver},
	{"WaiterLeaves", testWaiterLeaves},
	{"WaitStoreDown", testWaitStoreDown},

	// Headers and clients, with a store that can be held up
	{"LateHeaders", testLateHeaders},
	{"ClientLeavesDuringClaim", testClientLeavesDuringClaim},

	// A store that is down, or says no
	{"UnknownTenant", testUnknownTenant},
	{"SuspendedTenant", testSuspendedTenant},
	{"StoreRefuses", testStoreRefuses},
	{"StoreDownAtClaim", testStoreDownAtClaim},
	{"FailOpen", testFailOpen},
	{"ClaimAnswerLost", testClaimAnswerLost},
	{"StoreDownAtCompletion", testStoreDownAtCompletion},
	{"StoreBackForCompletion", testStoreBackForCompletion},
	{"HungCompletion", testHungCompletion},
	{"StoreDownAtRelease", testStoreDownAtRelease},
}
